"""A Runner without a model, for your own tests: fast, deterministic, numpy only.

>>> runner = FakeRunner()
>>> runner.run([1, 2, 3], taps="blocks.*.resid_post").logits.shape
(1, 3, 32)

Subclass it and override a method of `Runner` to script what an engine says.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike

from gpt2kit.batch import Ids, KVCache, RunInput, cache_length, check_run
from gpt2kit.config import GPT2Config
from gpt2kit.defaults import Default
from gpt2kit.edit_arrays import affine
from gpt2kit.errors import TapError
from gpt2kit.logits import largest
from gpt2kit.readout import Floats, Ints, Readout, Sums, check_residual, tiled
from gpt2kit.runner import Run, Runner, Source
from gpt2kit.taps import TapDict, residual_stream
from gpt2kit.tokenizer import Tokenizer
from gpt2kit.weight_names import weight_shape

SMALL = GPT2Config(
    vocab_size=32, n_positions=16, n_embd=8, n_layer=2, n_head=2, bos_token_id=0, eos_token_id=None
)


class FakeCache(KVCache):
    """Holds lengths alone: no position of a `FakeRunner` looks at another."""

    def copy(self) -> FakeCache:
        """An independent cache with the same content."""
        return FakeCache(self.lengths.copy(), self.max_length)


class FakeRunner:
    """A Runner in which layer i adds tanh(x + b_i) to the residual stream x; no layer norm.

    It has the taps of the residual stream, to read and to edit; other taps are a TapError. Its
    weights are random numbers, always the same for one name and shape. With a tokenizer,
    config.vocab_size must be the tokenizer's.
    """

    dtype: str = "float32"
    precision: str = "float32"
    weights_sha256: str = "fake"

    def __init__(self, config: GPT2Config = SMALL, tokenizer: Tokenizer | None = None) -> None:
        self.config, self.tokenizer, self.source = config, tokenizer, Source("fake")

    @property
    def taps(self) -> tuple[str, ...]:
        """See `Runner.taps`."""
        return residual_stream(self.config.n_layer)

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
        """See `Runner.run`."""
        given = check_run(
            self.config, FakeCache, ids,
            taps=taps, edits=edits, cache=cache, lengths=lengths, last_only=last_only, top_k=top_k,
        )  # fmt: skip
        batch, values = given.batch, self._stream(given)
        x = values[residual_stream(self.config.n_layer)[-1]]
        if last_only:
            x = x[np.arange(len(x)), batch.lengths - 1][:, None]
        logits, top_ids = self.unembed(x), None
        if top_k is not None:
            logits, top_ids = largest(logits, top_k)
        found = TapDict({tap: values[tap] for tap in given.taps}, self.config.n_layer)
        if given.cache is None:
            return Run(logits, found, None, top_ids)
        given.cache.spent = True
        advanced = FakeCache(batch.starts + batch.lengths, given.cache.max_length)
        return Run(logits, found, advanced, top_ids)

    def _stream(self, given: RunInput[FakeCache]) -> dict[str, Floats]:
        """Every tap of the residual stream, edited, (batch, pos, d_model)."""
        names = residual_stream(self.config.n_layer)
        changes = affine(given.edits, self.config, given.chunk, self.dtype)
        if unknown := {*given.taps, *changes} - {*names}:
            raise TapError(f"FakeRunner has the taps {', '.join(names)}, not {min(unknown)}")
        positions = given.batch.positions(self.config.n_positions)
        x = self.weight("wte.weight")[given.batch.ids] + self.weight("wpe.weight")[positions]
        values: dict[str, Floats] = {}
        for i, name in enumerate(names):
            if i:
                x = x + np.tanh(x + self.weight(f"h.{i - 1}.mlp.c_proj.bias"))
            keep, add = changes.get(name, (1, 0))
            values[name] = x = (keep * x + add).astype(np.float32)
        return values

    def readout(
        self,
        resid: Floats,
        *,
        top_k: int = Default(5),
        targets: ArrayLike | None = None,
        reference: Floats | None = None,
    ) -> Readout:
        """See `Runner.readout`."""
        return tiled(
            resid, targets, reference,
            config=self.config, dtype=self.dtype, top_k=top_k, read=self._sums, vectors=1024,
        )  # fmt: skip

    def unembed(self, resid: Floats) -> Floats:
        """See `Runner.unembed`."""
        vectors = check_residual(resid, self.config.n_embd, self.dtype)
        return vectors @ self.weight("lm_head.weight").T

    def weight(self, name: str) -> Floats:
        """See `Runner.weight`."""
        shape = weight_shape(name, self.config)
        seed = zlib.crc32(name.replace("lm_head", "wte").encode())  # the two are tied
        return np.random.default_rng(seed).standard_normal(shape, np.float32)

    def new_cache(self, batch_size: int = 1, max_length: int | None = None) -> FakeCache:
        """See `Runner.new_cache`."""
        length = cache_length(batch_size, max_length, self.config)
        return FakeCache(np.zeros(batch_size, np.int64), length)

    def _sums(self, resid: Floats, targets: Ints, refers: bool, top_k: int) -> Sums:
        """See `gpt2kit.readout.Read`; the whole vocabulary is one piece."""
        logits = self.unembed(resid)
        base = logits.max(-1)
        below = logits - base[..., None]
        z = np.exp(below).sum(-1)
        p = np.exp(below) / z[..., None]
        chosen = np.take_along_axis(logits, targets, -1)
        top, top_ids = largest(logits, top_k)
        return Sums(
            base=base[None],
            log_z=np.log(z)[None],
            mean=(p * below).sum(-1)[None],
            reference_mean=(p[:, -1:] * below).sum(-1)[None] if refers else None,
            top=top,
            top_ids=top_ids,
            chosen=chosen,
            above=(logits[..., None, :] > chosen[..., None]).sum(-1),
        )


if TYPE_CHECKING:  # mypy then checks that it meets the protocol
    _RUNNER: Runner = FakeRunner()
