"""The seam between engines and probes: the protocol Runner, and the result of one run.

numpy on both sides; nothing here imports torch or onnxruntime.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

from numpy.typing import ArrayLike

from gpt2kit.batch import Ids, KVCache
from gpt2kit.config import GPT2Config
from gpt2kit.defaults import Default
from gpt2kit.readout import Floats, Ints, Readout
from gpt2kit.taps import TapDict
from gpt2kit.tokenizer import Tokenizer


@dataclass(frozen=True)
class Source:
    """Where a model came from: its name, and the commit if the name is a hub id."""

    model: str
    revision: str | None = None

    def __str__(self) -> str:
        return f"{self.model}@{self.revision[:12]}" if self.revision else self.model


@dataclass(frozen=True)
class Run:
    """The result of one run.

    logits: (batch, pos, vocab), or (batch, 1, vocab) with last_only; float32 (float64 if the model
            is). Past the length of a shorter row, values are undefined. With top_k, the last axis
            holds the k largest, largest first.
    taps:   any spelling of a tap -> its value after edits, axes as in `gpt2kit.taps`.
    cache:  the advanced cache, if one was given.
    top_ids: with top_k, the token ids of these logits, of the same shape; else None.
    """

    logits: Floats
    taps: TapDict[Floats]
    cache: KVCache | None
    top_ids: Ints | None = None


class Runner(Protocol):
    """An engine that runs one GPT-2. Probes use engines through this protocol alone."""

    config: GPT2Config
    tokenizer: Tokenizer | None
    source: Source

    @property
    def dtype(self) -> str:
        """Floating-point type of the computation: "float32", "float16", "bfloat16", "float64"."""
        ...

    @property
    def precision(self) -> str:
        """The format of the weights: `dtype`, or "int8", "int4", "int4-all" if quantised."""
        ...

    @property
    def taps(self) -> tuple[str, ...]:
        """Canonical names of the taps that this engine gives, in the order in which they fire."""
        ...

    @property
    def weights_sha256(self) -> str:
        """Digest of the weights, equal on both engines for the same weights in the same dtype."""
        ...

    def run(
        self,
        ids: Ids,
        *,
        taps: str | Iterable[str] = (),
        edits: Sequence[Any] = (),
        cache: KVCache | None = None,
        lengths: ArrayLike | None = None,
        last_only: bool = False,
        top_k: int | None = None,
    ) -> Run:
        """Run token ids (batch, pos), or one row, or rows of unequal length.

        taps:    names, aliases or globs of the taps to return.
        edits:   `Edit`s, applied in order (the torch engine also takes (tap, function) pairs).
        cache:   from `new_cache` or an earlier run; positions continue where it ended.
        lengths: (batch,) number of tokens in each row of `ids`; the rest is right padding.
        last_only: return the logits of the last token of each row alone.
        top_k:   return only the k largest logits of each position, and their token ids. 0 leaves
                 out the unembedding, for a run that is made for its taps or its cache (a portable
                 graph computes all logits nevertheless, as with last_only).
        Raises InputError, or TapError or EditError, which are InputErrors, before any work is done.
        The run holds what the model computed, NaN and infinite values included; probes refuse such
        a run (see `gpt2kit.finite`).
        """
        ...

    def readout(
        self,
        resid: Floats,
        *,
        top_k: int = Default(5),
        targets: ArrayLike | None = None,
        reference: Floats | None = None,
    ) -> Readout:
        """Statistics of residual vectors (…, d_model) read through ln_f and the unembedding.

        Raises InputError for vectors that are not finite, or that the model's dtype cannot hold.
        targets:   token ids, broadcastable to (…, number of targets).
        reference: residual vectors (R…, d_model), R… the last axes of …, for `kl`.
        """
        ...

    def unembed(self, resid: Floats) -> Floats:
        """Logits (…, vocab) of a few residual vectors (…, d_model), through ln_f and unembedding.

        For many vectors use `readout`, which never holds all logits.
        """
        ...

    def weight(self, name: str) -> Floats:
        """A weight by its name in the checkpoint, in the layout that it has there.

        "wte.weight", "h.3.attn.c_attn.weight" (in, out), …; "lm_head.weight" is the unembedding,
        tied or not. float32 (float64 if the model is); weights of a quantised file are dequantised.
        Read-only, as it may be the engine's own memory. Raises InputError for an unknown name, with
        the nearest one.
        """
        ...

    def new_cache(self, batch_size: int = 1, max_length: int | None = None) -> KVCache:
        """An empty cache, by default for the whole context."""
        ...


@runtime_checkable
class LayerRunner(Protocol):
    """An engine that can also start at a later layer. Check with `isinstance`."""

    def run_from(
        self,
        layer: int,
        resid: Floats,
        *,
        taps: str | Iterable[str] = (),
        edits: Sequence[Any] = (),
        last_only: bool = False,
    ) -> Run:
        """Run `layer` and the layers above it, from the residual stream that enters it.

        resid: (batch, pos, d_model), the value of the tap `blocks.{layer}.resid_pre`; for
        layer = n_layer, the value of the last layer's `resid_post`. Taps and edits must be at
        this place or later; for the rest, see `Runner.run`. Raises InputError for earlier ones.
        """
        ...
