"""The torch engine: a Runner over the module itself."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor

from gpt2kit.batch import Batch, Ids, KVCache, cache_length, check_run, check_stream
from gpt2kit.checks import check_flag, check_integer
from gpt2kit.defaults import Default
from gpt2kit.edit_arrays import Chunk
from gpt2kit.errors import InputError
from gpt2kit.model import GPT2, Hooks, at_least_float32
from gpt2kit.readout import Floats, Ints, Readout, Sums, check_residual, tiled
from gpt2kit.runner import Run, Source
from gpt2kit.taps import TapDict, residual_stream, resolve, tap_axes
from gpt2kit.tokenizer import Tokenizer
from gpt2kit.torch_engine.cache import CacheWriter, TorchCache
from gpt2kit.torch_engine.digest import weights_sha256
from gpt2kit.torch_engine.edits import TorchEdit, edit_functions
from gpt2kit.torch_engine.readout import VECTORS, largest_logits, sums
from gpt2kit.weight_names import weight_shape


class TorchRunner:
    """A Runner on torch. `model` is the module itself.

    generation: the content of the source's generation_config.json; {} without one.
    It also meets `LayerRunner`: `run_from` starts at a later layer.
    """

    def __init__(
        self,
        model: GPT2,
        tokenizer: Tokenizer | None = None,
        source: Source | None = None,
        generation: Mapping[str, Any] | None = None,
    ) -> None:
        self.model, self.tokenizer, self.config = model, tokenizer, model.config
        self.source = source or Source("unnamed")
        self.generation: Mapping[str, Any] = dict(generation or {})

    def __repr__(self) -> str:
        c = self.config
        return (
            f"TorchRunner({self.source}, {c.n_layer} layers, {c.n_head} heads, d_model {c.n_embd}, "
            f"{self.dtype} on {self.device})"
        )

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.model.wte.weight.device

    @property
    def dtype(self) -> str:
        """See `Runner.dtype`; the dtype of the weights."""
        return str(self._dtype).removeprefix("torch.")

    @property
    def precision(self) -> str:
        """See `Runner.precision`; a torch model is never quantised, so this is `dtype`."""
        return self.dtype

    @property
    def taps(self) -> tuple[str, ...]:
        """See `Runner.taps`; a torch model gives every tap."""
        return tuple(tap_axes(self.config.n_layer))

    @cached_property
    def weights_sha256(self) -> str:
        """See `Runner.weights_sha256`. Computed once: later changes in place are not seen.

        Half-precision weights are hashed as float32, like those of a file exported in that dtype.
        """
        return weights_sha256(self.model, self._dtype)

    @property
    def _dtype(self) -> torch.dtype:
        return self.model.wte.weight.dtype

    @torch.inference_mode()
    def run(
        self,
        ids: Ids,
        *,
        taps: str | Iterable[str] = (),
        edits: Sequence[TorchEdit] = (),
        cache: KVCache | None = None,
        lengths: ArrayLike | None = None,
        last_only: bool = False,
        top_k: int | None = None,
    ) -> Run:
        """See `Runner.run`. An edit may also be (tap, function of the tensor at that tap)."""
        given = check_run(
            self.config, TorchCache, ids,
            taps=taps, edits=edits, cache=cache, lengths=lengths, last_only=last_only, top_k=top_k,
        )  # fmt: skip
        batch, held = given.batch, given.cache
        functions = edit_functions(given.edits, self.config, given.chunk, self.dtype)
        hooks = Hooks(self.config.n_layer, given.taps, functions)
        x = self.model.hidden(
            self._tensor(batch.ids),
            hooks,
            positions=self._tensor(batch.positions(self.config.n_positions)),
            mask=self._mask(batch),
            cache=None if held is None else CacheWriter(held, batch),
        )
        if last_only:
            x = x[torch.arange(len(x)), self._tensor(batch.lengths - 1)][:, None]
        if top_k is None:
            logits, top_ids = _numpy(self.model.unembed(x)), None
        else:
            logits, top_ids = largest_logits(self.model, x, top_k)
        taken = TapDict({k: _numpy(v) for k, v in hooks.values.items()}, self.config.n_layer)
        if held is None:
            return Run(logits, taken, None, top_ids)
        held.spent = True
        advanced = TorchCache(held.keys, held.values, batch.starts + batch.lengths)
        return Run(logits, taken, advanced, top_ids)

    @torch.inference_mode()
    def run_from(
        self,
        layer: int,
        resid: Floats,
        *,
        taps: str | Iterable[str] = (),
        edits: Sequence[TorchEdit] = (),
        last_only: bool = False,
    ) -> Run:
        """Run `layer` and the layers above it, from the residual stream that enters it.

        resid: (batch, pos, d_model), the value of the tap `blocks.{layer}.resid_pre`; for
        layer = n_layer, the value of the last layer's `resid_post`. Taps and edits must be at
        this place or later; for the rest, see `Runner.run`. Raises InputError for earlier ones.
        """
        c = self.config
        check_integer("layer", layer, 0, c.n_layer)
        check_flag("last_only", last_only)
        stream = check_stream(resid, c, self.dtype)
        chunk = Chunk(np.zeros(len(stream), np.int64), stream.shape[1], stream.shape[1])
        functions = edit_functions(edits, c, chunk, self.dtype)
        hooks = Hooks(c.n_layer, resolve(taps, c.n_layer), functions)
        entry = residual_stream(c.n_layer)[layer]
        for early in itertools.takewhile(lambda tap: tap != entry, tap_axes(c.n_layer)):
            if hooks.needs(early):
                raise InputError(f"{early} comes before layer {layer}, where this run starts")
        x = hooks(entry, self._tensor(stream).to(self._dtype))
        x = self.model.hidden_from(x, hooks, layer=layer)
        logits = _numpy(self.model.unembed(x[:, -1:] if last_only else x))
        taken = TapDict({k: _numpy(v) for k, v in hooks.values.items()}, c.n_layer)
        return Run(logits, taken, None)

    def new_cache(self, batch_size: int = 1, max_length: int | None = None) -> TorchCache:
        """An empty cache for `batch_size` rows of at most `max_length` positions."""
        c = self.config
        length = cache_length(batch_size, max_length, c)
        shape = (c.n_layer, batch_size, c.n_head, length, c.d_head)
        keys, values = (torch.zeros(shape, dtype=self._dtype, device=self.device) for _ in "kv")
        return TorchCache(keys, values, np.zeros(batch_size, np.int64))

    @torch.inference_mode()
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
            resid,
            targets,
            reference,
            config=self.config,
            dtype=self.dtype,
            top_k=top_k,
            read=self._sums,
            vectors=VECTORS,
        )

    @torch.inference_mode()
    def unembed(self, resid: Floats) -> Floats:
        """See `Runner.unembed`."""
        resid = check_residual(resid, self.config.n_embd, self.dtype)
        x = self._tensor(resid).to(self._dtype)
        return _numpy(self.model.unembed(self.model.ln_f(x)))

    def weight(self, name: str) -> Floats:
        """See `Runner.weight`."""
        weight_shape(name, self.config)
        head = name == "lm_head.weight"
        array = _numpy(
            (self.model.unembedding if head else self.model.get_parameter(name)).detach()
        )
        array.flags.writeable = False
        return array

    def _sums(self, resid: Floats, targets: Ints, refers: bool, top_k: int) -> Sums:
        x = self.model.ln_f(self._tensor(resid).to(self._dtype))
        return sums(self.model, x, self._tensor(targets), refers, top_k)

    def _tensor(self, array: np.ndarray) -> Tensor:
        return torch.from_numpy(np.require(array, requirements=["C", "W"])).to(self.device)

    def _mask(self, batch: Batch) -> Tensor | None:
        """(1 or batch, 1, query, key) bool, or None if plain causal attention is right.

        Padding is on the right, later than every token of its row; so a causal mask over absolute
        positions hides it, and no row of the mask is empty.
        """
        start, pos = batch.starts[0], batch.ids.shape[1]
        if batch.uniform and (start == 0 or pos == 1):
            return None
        keys = int(start) + pos if batch.uniform else batch.end
        queries = self._tensor(batch.positions(self.config.n_positions))  # (1 or batch, pos)
        return torch.arange(keys, device=self.device) <= queries[:, None, :, None]


def _numpy(x: Tensor) -> Floats:
    return at_least_float32(x).cpu().numpy()
