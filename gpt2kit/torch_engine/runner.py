"""The torch engine: a Runner over the module itself, and `load`."""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable, Iterable, Sequence
from functools import cached_property, partial

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor

from gpt2kit.batch import Batch, Ids, KVCache, cache_length, prepare
from gpt2kit.edit_arrays import Affine, Chunk, affine, listed
from gpt2kit.edits import Edit
from gpt2kit.errors import EditError, InputError
from gpt2kit.model import GPT2, Cache, Hooks, at_least_float32
from gpt2kit.readout import Floats, Ints, Readout, Sums, check_width, tiled
from gpt2kit.runner import Run, Source
from gpt2kit.taps import TapDict, resolve_one, tap_axes
from gpt2kit.tokenizer import Tokenizer
from gpt2kit.torch_engine import checkpoint
from gpt2kit.torch_engine.readout import VECTORS, largest_logits, sums
from gpt2kit.weight_names import weight_shape

DTYPES = {
    "float32": torch.float32,
    "float16": torch.float16,
    "bfloat16": torch.bfloat16,
    "float64": torch.float64,
}

Function = Callable[[Tensor], Tensor]


def load(
    model: str | os.PathLike[str] = "auto",
    *,
    revision: str | None = None,
    device: str = "auto",
    dtype: str = "float32",
) -> TorchRunner:
    """Load a GPT-2 from a folder in Hugging Face layout, a hub id, "bundled" or "auto".

    device: "cpu", "cuda", …, or "auto": CUDA where torch has it, else the CPU.
    dtype: "float32", "float16", "bfloat16" or "float64", whatever the file holds.
    Raises CheckpointError, ConfigError or InputError, each saying what to do.
    """
    if dtype not in DTYPES:
        raise InputError(f"dtype {dtype!r} is not one of {', '.join(DTYPES)}")
    device = _device(device)
    found = checkpoint.find(model, revision)
    module = checkpoint.read_model(found.folder, device, DTYPES[dtype])
    return TorchRunner(module, Tokenizer.from_folder(found.folder), found.source)


def _device(device: str) -> str:
    if device == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    try:
        kind = torch.device(device).type
    except RuntimeError as error:
        raise InputError(
            f"device {device!r} is not one that torch knows; try cpu or cuda"
        ) from error
    if kind == "cuda" and not torch.cuda.is_available():
        raise InputError(
            f"device {device!r}: torch sees no CUDA here; `gpt2kit doctor` says what is missing"
        )
    return device


class TorchCache(KVCache):
    """Preallocated keys and values: two tensors (layer, batch, head, max_length, d_head)."""

    def __init__(self, keys: Tensor, values: Tensor, lengths: np.ndarray) -> None:
        super().__init__(lengths, keys.shape[3])
        self.keys, self.values = keys, values

    def copy(self) -> TorchCache:
        """An independent cache with the same content."""
        return TorchCache(self.keys.clone(), self.values.clone(), self.lengths.copy())


class _Writer(Cache):
    """Puts one run's keys and values at their absolute positions in a cache."""

    def __init__(self, cache: TorchCache, batch: Batch) -> None:
        self.cache, self.batch = cache, batch
        if not batch.uniform:  # (tokens,) row and position of every token that is not padding
            rows, columns = np.nonzero(np.arange(batch.ids.shape[1]) < batch.lengths[:, None])
            place = (rows, columns, batch.starts[rows] + columns)
            self.rows, self.columns, self.positions = map(torch.from_numpy, place)

    def update(self, layer: int, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """k, v (batch, head, pos, d_head) -> those of all positions so far."""
        out = []
        for buffer, new in ((self.cache.keys[layer], k), (self.cache.values[layer], v)):
            if self.batch.uniform:
                start = int(self.batch.starts[0])
                buffer[:, :, start : start + new.shape[2]] = new
                out.append(buffer[:, :, : start + new.shape[2]])
            else:
                buffer[self.rows, :, self.positions] = new[self.rows, :, self.columns]
                out.append(buffer[:, :, : self.batch.end])
        return out[0], out[1]


class TorchRunner:
    """A Runner on torch; `model` is the module itself."""

    def __init__(
        self, model: GPT2, tokenizer: Tokenizer | None = None, source: Source | None = None
    ) -> None:
        self.model, self.tokenizer, self.config = model, tokenizer, model.config
        self.source = source or Source("unnamed")

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
        """What the weights are: "float32", …."""
        return str(self._dtype).removeprefix("torch.")

    @property
    def precision(self) -> str:
        """See `Runner.precision`; a torch model is never quantised, so this is `dtype`."""
        return self.dtype

    @cached_property
    def weights_sha256(self) -> str:
        """See `Runner.weights_sha256`. Computed once: later changes in place are not noticed.

        Half-precision weights are hashed as float32 numbers, as in a file exported in that dtype.
        """
        half = self._dtype in (torch.float16, torch.bfloat16)
        return checkpoint.weights_sha256(self.model, self._dtype if half else None)

    @property
    def _dtype(self) -> torch.dtype:
        return self.model.wte.weight.dtype

    @torch.inference_mode()
    def run(
        self,
        ids: Ids,
        *,
        taps: str | Iterable[str] = (),
        edits: Sequence[Edit | tuple[str, Function]] = (),
        cache: KVCache | None = None,
        lengths: ArrayLike | None = None,
        last_only: bool = False,
        top_k: int | None = None,
    ) -> Run:
        """See `Runner.run`. An edit may also be (tap, function of the tensor at that tap)."""
        if cache is not None and not isinstance(cache, TorchCache):
            raise InputError(f"this engine needs a cache of its own, got {type(cache).__name__}")
        batch = prepare(ids, lengths, cache, self.config, top_k)
        functions = self._functions(edits, batch.chunk(cached=cache is not None))
        hooks = Hooks(self.config.n_layer, taps, functions)
        x = self.model.hidden(
            self._tensor(batch.ids),
            hooks,
            positions=self._tensor(batch.positions(self.config.n_positions)),
            mask=self._mask(batch),
            cache=None if cache is None else _Writer(cache, batch),
        )
        if last_only:
            x = x[torch.arange(len(x)), self._tensor(batch.lengths - 1)][:, None]
        if top_k is None:
            logits, top_ids = _numpy(self.model.unembed(x)), None
        else:
            logits, top_ids = largest_logits(self.model, x, top_k)
        taken = TapDict({k: _numpy(v) for k, v in hooks.values.items()}, self.config.n_layer)
        if cache is None:
            return Run(logits, taken, None, top_ids)
        cache.spent = True
        advanced = TorchCache(cache.keys, cache.values, batch.starts + batch.lengths)
        return Run(logits, taken, advanced, top_ids)

    @torch.inference_mode()
    def run_from(
        self,
        layer: int,
        resid: Floats,
        *,
        taps: str | Iterable[str] = (),
        edits: Sequence[Edit | tuple[str, Function]] = (),
        last_only: bool = False,
    ) -> Run:
        """Run `layer` and those above it alone, from the residual stream that enters it.

        resid: (batch, pos, d_model), as the tap `blocks.{layer}.resid_pre` gave it; that of the
        last layer's `resid_post` for layer = n_layer. Taps and edits are of this place and of what
        comes later; for the rest, see `Runner.run`. Raises InputError for earlier ones.
        """
        c = self.config
        if not 0 <= layer <= c.n_layer:
            raise InputError(f"layer = {layer} must be from 0 to {c.n_layer}, the number of layers")
        if resid.ndim != 3 or not resid.size or resid.shape[2] != c.n_embd:
            raise InputError(f"a residual stream is (batch, pos, {c.n_embd}), got {resid.shape}")
        rows, pos = resid.shape[:2]
        if pos > c.n_positions:
            raise InputError(f"{pos} positions do not fit the context of {c.n_positions}")
        chunk = Chunk(np.zeros(rows, np.int64), pos, pos)
        hooks = Hooks(c.n_layer, taps, self._functions(edits, chunk))
        entry = f"blocks.{layer - 1}.resid_post" if layer else "blocks.0.resid_pre"
        for early in itertools.takewhile(lambda tap: tap != entry, tap_axes(c.n_layer)):
            if hooks.needs(early):
                raise InputError(f"{early} comes before layer {layer}, where this run starts")
        x = hooks(entry, self._tensor(resid).to(self._dtype))
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
        top_k: int = 5,
        targets: ArrayLike | None = None,
        reference: Floats | None = None,
    ) -> Readout:
        """See `Runner.readout`."""
        return tiled(
            resid,
            targets,
            reference,
            config=self.config,
            top_k=top_k,
            read=self._sums,
            vectors=VECTORS,
        )

    @torch.inference_mode()
    def unembed(self, resid: Floats) -> Floats:
        """See `Runner.unembed`."""
        check_width(resid, self.config.n_embd)
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
        """(1 or batch, 1, query, key), or None where plain causal attention is right.

        Padding is on the right and so always later than what may look; no row of the mask is
        empty.
        """
        start, pos = batch.starts[0], batch.ids.shape[1]
        if batch.uniform and (start == 0 or pos == 1):
            return None
        keys = int(start) + pos if batch.uniform else batch.end
        queries = self._tensor(batch.positions(self.config.n_positions))  # (1 or batch, pos)
        return torch.arange(keys, device=self.device) <= queries[:, None, :, None]

    def _functions(
        self, edits: Sequence[Edit | tuple[str, Function]], chunk: Chunk
    ) -> dict[str, Function]:
        """Edits as one function a tap, applied in the order given."""
        out: dict[str, Function] = {}
        for edit in listed(edits):
            if isinstance(edit, Edit):
                new: dict[str, Function] = {
                    t: partial(self._apply, a)
                    for t, a in affine([edit], self.config, chunk).items()
                }
            elif isinstance(edit, tuple) and len(edit) == 2 and callable(edit[1]):
                tap = resolve_one(edit[0], self.config.n_layer)
                new = {tap: partial(_checked, tap, edit[1])}
            else:
                raise EditError(f"{edit!r} is neither an Edit nor a (tap, function) pair")
            for tap, function in new.items():
                out[tap] = _then(out[tap], function) if tap in out else function
        return out

    @staticmethod
    def _apply(change: Affine, x: Tensor) -> Tensor:
        keep, add = (torch.from_numpy(part).to(x.device, x.dtype) for part in change)
        return torch.addcmul(add, keep, x)


def _checked(tap: str, function: Function, x: Tensor) -> Tensor:
    out = function(x)
    if not isinstance(out, Tensor) or out.shape != x.shape:
        found = tuple(out.shape) if isinstance(out, Tensor) else type(out).__name__
        raise EditError(f"the edit of {tap} must return shape {tuple(x.shape)}, got {found}")
    return out


def _then(first: Function, second: Function) -> Function:
    return lambda x: second(first(x))


def _numpy(x: Tensor) -> Floats:
    return at_least_float32(x).cpu().numpy()
