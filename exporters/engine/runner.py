"""The onnxruntime engine: a Runner over an exported .onnx file. Imports no torch."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import onnxruntime as ort
from numpy.typing import ArrayLike, NDArray
from onnx import TensorProto, parser

from exporters.engine.caches import Changes, Decoder, InPlaceCache, OnnxCache, zeros
from exporters.engine.devices import choose
from exporters.engine.readout_sessions import ReadoutSessions, Unembedding
from exporters.engine.run_parts import absolute_keys, by_slot, cut, joined
from exporters.engine.sessions import Opened, open_session, providers, reason, run_options
from exporters.engine.topk_graph import TopK
from exporters.file.metadata import FileMetadata
from exporters.file.names import LOGITS_POSITIONS, edit_names, existing, past_names, present_names
from exporters.file.stored_weights import Weights
from gpt2kit.batch import Batch, Ids, KVCache, cache_length, prepare
from gpt2kit.checks import check_integer
from gpt2kit.edit_arrays import Chunk, affine, listed
from gpt2kit.edits import Edit
from gpt2kit.errors import EditError, EngineError, InputError, TapError
from gpt2kit.logits import largest
from gpt2kit.readout import Floats, Readout, check_residual, tiled
from gpt2kit.runner import Run
from gpt2kit.taps import SCORES, TapDict, axes_of, resolve
from gpt2kit.tokenizer import Tokenizer

T = TypeVar("T")
# Tokens of one row that the fused graph runs together on a CPU: its attention works out scores of
# all keys of a run, later ones too, which for long prompts is most of its time.
CHUNK = 256
ELEMENT = {
    "float32": TensorProto.FLOAT,
    "float16": TensorProto.FLOAT16,
    "bfloat16": TensorProto.BFLOAT16,
}
_WIDEN = """
<ir_version: 10, opset_import: ["" : 18]>
widen (bfloat16[a, b, c, d] x) => (float[a, b, c, d] y) { y = Cast <to = 1> (x) }
"""


def open_onnx(
    path: str | os.PathLike[str], *, device: str = "auto", threads: int | None = None
) -> OnnxRunner:
    """Open a file that `export_onnx` made; its tokenizer.json is read from the same folder.

    device: "cpu", "cuda", or "auto": CUDA where it works and can run this file, else the CPU.
    threads: for the CPU; by default one a physical core.
    Raises EngineError if the file or the device cannot be used, saying what to do.
    """
    if threads is not None:
        check_integer("threads", threads)
    file = existing(path)
    chosen = choose(device)
    if chosen == "cuda":
        ort.preload_dlls()
    opened = Opened(file)
    try:
        session, graphs = open_session(file, chosen, threads, lean=True)
    except EngineError:
        if (device, chosen) != ("auto", "cuda"):
            raise
        chosen = "cpu"
        session, graphs = open_session(file, chosen, threads, lean=True)
    return OnnxRunner(file, session, chosen, graphs, opened)


class OnnxRunner:
    """A Runner on onnxruntime. `taps` are the names that the file carries.

    Its session leaves out all taps but those of the residual stream, for others cost time even if
    nobody fetches them. When a run first asks for one, a second session that gives all is opened
    beside it, for the runs that ask; its memory, the weights once more, is the price of that.
    """

    def __init__(
        self,
        path: Path,
        session: ort.InferenceSession,
        device: str,
        cuda_graphs: bool = False,
        opened: Opened | None = None,
    ) -> None:
        stored = session.get_modelmeta().custom_metadata_map
        self.metadata = meta = FileMetadata.from_metadata(stored, path)
        self.path, self.session, self.device = path, session, device
        self.cuda_graphs, self._opened = cuda_graphs, opened or Opened(path)
        self.config, self.source = meta.config, meta.source
        self.taps, self.edits = meta.taps, meta.edits
        self.dtype, self.profile, self.quantize = meta.dtype, meta.profile, meta.quantize
        self.precision, self.weights_sha256 = meta.precision, meta.weights_sha256
        self.tokenizer = Tokenizer.from_folder(path.parent)
        self.past_names = past_names(self.config.n_layer)
        self.present_names = present_names(self.config.n_layer)
        self.run_options = run_options()
        self._given = {output.name for output in session.get_outputs()}

    def __repr__(self) -> str:
        c = self.config
        return (
            f"OnnxRunner({self.path.name}: {self.source}, {c.n_layer} layers, {c.n_head} heads, "
            f"d_model {c.n_embd}, {self.profile} {self.quantize or self.dtype} on {self.provider}, "
            f"{self.threads} threads, {len(self.taps)} taps, {len(self.edits)} edits)"
        )

    def carrying(self, outputs: Iterable[str]) -> ort.InferenceSession:
        """A session that gives these outputs of the file: `session`, if that does."""
        return self.session if self._given.issuperset(outputs) else self._whole

    @cached_property
    def _whole(self) -> ort.InferenceSession:
        self._opened.check()
        return open_session(self.path, self.device, self.threads)[0]

    @property
    def provider(self) -> str:
        """What computes: "CPUExecutionProvider" or "CUDAExecutionProvider"."""
        return str(self.session.get_providers()[0])

    @property
    def threads(self) -> int:
        """How many threads one operator is spread over on the CPU."""
        return int(self.session.get_session_options().intra_op_num_threads)

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
        if cache is not None and type(cache) is not self._cache_type:
            raise InputError(f"this engine needs a cache of its own, got {type(cache).__name__}")
        edited = self._edited(edits)
        wanted = self._wanted(taps)
        unread = top_k == 0 and (wanted or cache is not None)  # some output there must be
        names = wanted if unread else ("logits", *wanted)
        batch = prepare(ids, lengths, cache, self.config, top_k)
        if isinstance(cache, InPlaceCache) or (cache is None and self.profile == "fused"):
            # A decoder's mask is as wide as its buffers: scores and patterns would have more keys.
            plain = names == ("logits",) and not any(axes_of(tap) == SCORES for tap in edited)
            if isinstance(cache, InPlaceCache) and plain and batch.ids.shape[1] == 1:
                return self._decode(batch, cache, edits, top_k)
            run = self._run_in_place(batch, cache, names, edits, last_only)
        else:
            assert cache is None or isinstance(cache, OnnxCache)
            run = self._run_growing(batch, cache, names, edits, last_only)
        if top_k is None:
            return run
        logits, top_ids = largest(run.logits, top_k)
        return replace(run, logits=logits, top_ids=top_ids)

    def _decode(
        self, batch: Batch, cache: InPlaceCache, edits: Sequence[Edit], top_k: int | None
    ) -> Run:
        """One token a row, in the fused graph."""
        decoder = cache.decoder
        if decoder is None or decoder.session is not self.session:  # another runner's
            decoder = Decoder(self, cache.past, cache.max_length)
        changes = self._changes(edits, batch.chunk(cached=True))
        logits, top_ids = self._take(self._attempt(partial(decoder, batch, changes)), top_k)
        cache.spent = True
        advanced = InPlaceCache(cache.past, batch.starts + 1, cache.max_length, decoder)
        return Run(logits, TapDict({}, self.config.n_layer), advanced, top_ids)

    def _take(
        self, logits: ort.OrtValue, top_k: int | None
    ) -> tuple[Floats, NDArray[np.int64] | None]:
        """Copy logits from the device, or no more than the k largest."""
        if top_k is None:
            return logits.numpy().copy(), None  # on the CPU, numpy() is a view
        if self.device == "cuda":
            return self._top_k(logits, top_k)
        return largest(logits.numpy(), top_k)

    def _run_growing(
        self,
        batch: Batch,
        cache: OnnxCache | None,
        names: tuple[str, ...],
        edits: Sequence[Edit],
        last_only: bool,
    ) -> Run:
        """The portable graph: the cache comes out longer than it went in."""
        before = cache or self.new_cache(len(batch.ids))
        assert isinstance(before, OnnxCache)
        new = np.arange(batch.ids.shape[1]) < batch.lengths[:, None]
        slots = np.concatenate([before.slots, new], axis=1)
        presents = {} if cache is None else dict.fromkeys(self.present_names)
        changes = self._changes(edits, batch.chunk(cached=cache is not None), slots)
        outputs = self._execute(batch, slots, before.past, names, presents, changes)
        values = {name: value.numpy() for name, value in zip(names, outputs, strict=False)}
        logits = values.pop("logits", np.empty((*batch.ids.shape, 0), np.float32))
        if last_only:
            logits = logits[np.arange(len(logits)), batch.lengths - 1][:, None]
        found = {
            tap: absolute_keys(_widen(value), tap, slots, batch.end)
            for tap, value in values.items()
        }
        taken = TapDict(found, self.config.n_layer)
        if cache is None:
            return Run(logits, taken, None)
        cache.spent = True
        present, ends = outputs[len(names) :], batch.starts + batch.lengths
        return Run(logits, taken, OnnxCache(present, slots, ends, cache.max_length))

    def _run_in_place(
        self,
        batch: Batch,
        cache: InPlaceCache | None,
        names: tuple[str, ...],
        edits: Sequence[Edit],
        last_only: bool,
    ) -> Run:
        """The fused graph: the cache is one buffer, past and present at once."""
        rows, columns = batch.ids.shape
        # GroupQueryAttention continues a batch of rows by one token at a time.
        single = rows > 1 and columns > 1 and bool(batch.starts.any())
        whole = rows > 1 or self.device != "cpu" or (cache is None and bool(edits))
        whole = whole or any(name != "logits" and axes_of(name) == SCORES for name in names)
        size = 1 if single else columns if whole else CHUNK
        parts = [cut(batch, j, size) for j in range(0, columns, size)]
        if len(parts) > 1:  # an edit must fit the whole run, and be refused before any part of it
            self._changes(edits, batch.chunk(cached=cache is not None))
        if cache is not None:
            past = cache.past
        else:
            past = self.empty(rows, columns if len(parts) > 1 else 0)
        keep = cache is not None or len(parts) > 1
        presents = dict(zip(self.present_names, past, strict=True)) if keep else {}
        found: list[list[NDArray[Any]]] = []
        for part in parts:
            held = np.arange(part.end) < (part.starts + part.lengths)[:, None]
            kept = np.arange(part.ids.shape[1])[None]
            if last_only and not single:
                kept = np.array([[-1]]) if part is parts[-1] else kept[:, :0]
            if "logits" not in names:
                kept = kept[:, :0]
            changes = self._changes(edits, part.chunk(cached=cache is not None))
            outputs = self._execute(part, held, past, names, presents, changes, kept)
            found.append([value.numpy() for value in outputs[: len(names)]])
        values = {
            name: joined(parts, name, batch.end)
            for name, parts in zip(names, zip(*found, strict=True), strict=True)
        }
        given = 1 if last_only and not single else columns
        logits = values.pop("logits", np.empty((rows, given, 0), np.float32))
        if last_only and single:
            logits = logits[np.arange(rows), batch.lengths - 1][:, None]
        taps = {tap: _widen(value) for tap, value in values.items()}
        taken = TapDict(taps, self.config.n_layer)
        if cache is None:
            return Run(logits, taken, None)
        cache.spent = True
        ends = batch.starts + batch.lengths
        advanced = InPlaceCache(cache.past, ends, cache.max_length, cache.decoder)
        return Run(logits, taken, advanced)

    def _wanted(self, taps: str | Iterable[str]) -> tuple[str, ...]:
        wanted = resolve(taps, self.config.n_layer)
        missing = [tap for tap in wanted if tap not in self.taps]
        if missing:
            raise TapError(
                f"{self.path.name} does not carry the tap {self._how_to_export(missing, 'taps')}"
            )
        return wanted

    def _edited(self, edits: Sequence[Any]) -> list[str]:
        """The taps that they edit. Raises EditError if this file cannot take them."""
        wanted: list[str] = []
        for edit in listed(edits):
            if not isinstance(edit, Edit):
                raise EditError(
                    f"{self.path.name}: {edit!r} is not an Edit; functions run on the torch engine"
                )
            wanted += resolve(edit.tap, self.config.n_layer)
        if missing := [tap for tap in dict.fromkeys(wanted) if tap not in self.edits]:
            how = self._how_to_export(missing, "edits")
            raise EditError(f"{self.path.name} takes no edit of {how}")
        return wanted

    def _changes(
        self, edits: Sequence[Edit], chunk: Chunk, slots: NDArray[np.bool_] | None = None
    ) -> Changes:
        """The inputs that make these edits in one run. slots: where along the cached axis each
        row's tokens are, if they have gaps."""
        out = {}
        for tap, change in affine(edits, self.config, chunk).items():
            for name, value, default in zip(edit_names(tap), change, (1, 0), strict=True):
                if slots is not None and axes_of(tap) == SCORES:
                    value = by_slot(value, slots, default)
                out[name] = np.ascontiguousarray(value, np.float32)
        return out

    def _how_to_export(self, missing: Sequence[str], option: str) -> str:
        """'blocks.3.z' (and 2 more); export it with …."""
        more = f" (and {len(missing) - 1} more)" if len(missing) > 1 else ""
        globs = " ".join(f"--{option} '{glob}'" for glob in _globs(missing))
        return f"{missing[0]!r}{more}; export it with `gpt2kit export --onnx … {globs}`"

    def _execute(
        self,
        batch: Batch,
        slots: NDArray[np.bool_],
        past: Sequence[ort.OrtValue],
        names: Sequence[str],
        presents: Mapping[str, ort.OrtValue | None],
        changes: Changes,
        kept: NDArray[np.int64] | None = None,
    ) -> list[ort.OrtValue]:
        """Run the graph; the cache goes in and comes out on the device, the rest on the CPU.

        presents: the outputs to keep, into the given buffer or one of the engine's own.
        """
        session = self.carrying(names)
        binding = session.io_binding()
        positions = batch.positions(self.config.n_positions)
        feeds = {
            "input_ids": batch.ids,
            "attention_mask": slots.astype(np.int64),
            "position_ids": np.broadcast_to(positions, batch.ids.shape),
        }
        if kept is not None:
            feeds[LOGITS_POSITIONS] = kept
        for name, array in feeds.items():
            binding.bind_cpu_input(name, np.ascontiguousarray(array))
        for name, change in changes.items():  # bind_cpu_input does not know optional inputs
            binding.bind_ortvalue_input(name, ort.OrtValue.ortvalue_from_numpy(change))
        for name, value in zip(self.past_names, past, strict=True):
            binding.bind_ortvalue_input(name, value)
        for name in names:
            binding.bind_output(name, "cpu")
        for name, buffer in presents.items():
            if buffer is None:
                binding.bind_output(name, self.device)
            else:
                binding.bind_ortvalue_output(name, buffer)
        self._attempt(lambda: session.run_with_iobinding(binding, self.run_options))
        outputs: list[ort.OrtValue] = binding.get_outputs()
        return outputs

    def _attempt(self, run: Callable[[], T]) -> T:
        try:
            return run()
        except Exception as error:  # onnxruntime's exceptions share no base of their own
            raise EngineError(f"{self.path}: {reason(str(error), 'run')}") from error

    @property
    def _cache_type(self) -> type[KVCache]:
        return InPlaceCache if self.profile == "fused" else OnnxCache

    def new_cache(self, batch_size: int = 1, max_length: int | None = None) -> KVCache:
        """An empty cache for `batch_size` rows of at most `max_length` positions."""
        length = cache_length(batch_size, max_length, self.config)
        lengths = np.zeros(batch_size, np.int64)
        if self.profile == "fused":
            return InPlaceCache(self.empty(batch_size, length), lengths, length)
        slots = np.zeros((batch_size, 0), bool)
        return OnnxCache(self.empty(batch_size), slots, lengths, length)

    def empty(self, batch_size: int, length: int = 0) -> list[ort.OrtValue]:
        """Keys and values of every layer, zeros; one tensor serves them all if it holds nothing."""
        c, count = self.config, len(self.past_names)
        shape = (batch_size, c.n_head, length, c.d_head)
        values = [
            zeros(shape, ELEMENT[self.dtype], self.device) for _ in range(count if length else 1)
        ]
        return values if length else values * count

    def read(self, value: ort.OrtValue) -> NDArray[np.float32]:
        """A value of the graph, wherever it is and whatever its dtype, as float32."""
        if value.data_type() != "tensor(bfloat16)":
            return np.asarray(value.numpy(), np.float32)
        binding = self._widen.io_binding()
        binding.bind_ortvalue_input("x", value)
        binding.bind_output("y", "cpu")
        self._widen.run_with_iobinding(binding)
        wide: NDArray[np.float32] = binding.get_outputs()[0].numpy()
        return wide

    @cached_property
    def _widen(self) -> ort.InferenceSession:
        model = parser.parse_model(_WIDEN).SerializeToString()
        return ort.InferenceSession(model, providers=providers(self.device))

    @cached_property
    def _weights(self) -> Weights:
        return Weights(self.path, self.config)

    @cached_property
    def _top_k(self) -> TopK:
        return TopK(providers(self.device))

    @cached_property
    def _readout(self) -> ReadoutSessions:
        self._opened.check()
        return ReadoutSessions(self.path, self.config, self.device, self.threads)

    @cached_property
    def _unembedding(self) -> Unembedding:
        self._opened.check()
        return Unembedding(self.path, self.config, self.device, self.threads)

    def readout(
        self,
        resid: Floats,
        *,
        top_k: int = 5,
        targets: ArrayLike | None = None,
        reference: Floats | None = None,
    ) -> Readout:
        """See `Runner.readout`; computed by onnxruntime from the file's own weights."""
        return tiled(
            resid,
            targets,
            reference,
            config=self.config,
            top_k=top_k,
            read=self._readout.sums,
            vectors=self._readout.vectors,
        )

    def unembed(self, resid: Floats) -> Floats:
        """See `Runner.unembed`."""
        resid = check_residual(resid, self.config.n_embd)
        logits = self._unembedding.logits(resid.reshape(-1, resid.shape[-1]))
        return logits.reshape(*resid.shape[:-1], self.config.vocab_size)

    def weight(self, name: str) -> Floats:
        """See `Runner.weight`; read from the file each time."""
        self._opened.check()
        return self._weights.read(name)


def _globs(taps: Sequence[str]) -> list[str]:
    """Taps as few patterns: the same tap in several layers becomes `blocks.*.tap`."""
    kinds = [re.sub(r"^blocks\.\d+\.", "blocks.*.", tap) for tap in taps]
    pairs = zip(taps, kinds, strict=True)
    return list(dict.fromkeys(tap if kinds.count(kind) == 1 else kind for tap, kind in pairs))


def _widen(x: NDArray[Any]) -> Floats:
    return x.astype(np.float32) if x.dtype == np.float16 else x
