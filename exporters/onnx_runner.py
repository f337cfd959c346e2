"""The onnxruntime engine: a Runner over an exported .onnx file. Imports no torch."""

from __future__ import annotations

import itertools
import json
import os
import re
import weakref
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import onnxruntime as ort
from numpy.typing import ArrayLike, NDArray
from onnx import TensorProto, parser

from exporters import mapped
from exporters.devices import CPU, CUDA, check_placement, choose, physical_cores
from exporters.interface import LOGITS_POSITIONS, past_names, present_names
from exporters.readout_graph import ReadoutGraph
from exporters.topk_graph import TopK
from gpt2kit.config import GPT2Config
from gpt2kit.errors import EditError, EngineError, InputError, TapError
from gpt2kit.readout import Floats, Readout, tiled
from gpt2kit.runner import Batch, Ids, KVCache, Run, Source, cache_length, prepare
from gpt2kit.sampling import largest
from gpt2kit.taps import TapDict, axes_of, resolve
from gpt2kit.tokenizer import Tokenizer

T = TypeVar("T")
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

    device: "cpu", "cuda", or "auto": CUDA where it works, else the CPU.
    threads: for the CPU; by default one a physical core.
    Raises EngineError if the file or the device cannot be used, saying what to do.
    """
    file = Path(path)
    if not file.is_file():
        raise EngineError(f"{file}: {'is a folder' if file.is_dir() else 'no such file'}")
    device = choose(device)
    if device == "cuda":
        ort.preload_dlls()
    session, graphs = _session(file, device, threads)
    return OnnxRunner(file, session, device, graphs)


def _options(threads: int | None) -> ort.SessionOptions:
    options = ort.SessionOptions()
    options.log_severity_level = 3  # errors; they are raised as well
    options.intra_op_num_threads = threads or physical_cores()
    return options


def _run_options(graph: int = -1) -> ort.RunOptions:
    """Compute no more than what is fetched. graph: which CUDA graph to capture or replay, -1: none.

    (It is set even on the CPU, where onnxruntime would look for it in vain at every run.)
    """
    options = ort.RunOptions()
    options.only_execute_path_to_fetches = True
    options.add_run_config_entry("gpu_graph_id", str(graph))
    return options


def _providers(device: str, graphs: bool = False) -> list[Any]:
    if device != "cuda":
        return [CPU]
    # TF32 would round float32 products to 10 bits, and parity would not hold.
    return [(CUDA, {"use_tf32": "0", "enable_cuda_graph": "1" if graphs else "0"}), CPU]


def _session(file: Path, device: str, threads: int | None) -> tuple[ort.InferenceSession, bool]:
    """The session, and whether it can capture CUDA graphs."""
    options = _options(threads)
    if device == "cuda":
        options.add_session_config_entry("session.record_ep_graph_assignment_info", "1")
    for graphs in (True, False) if device == "cuda" else (False,):
        try:
            providers = _providers(device, graphs)
            session = mapped.session(file, options, providers=providers)
        except Exception as error:  # onnxruntime's exceptions share no base of their own
            if graphs and "graph capture" in str(error):
                continue  # a graph with a node on the CPU runs without
            raise EngineError(f"{file}: {_reason(str(error))}") from error
        if device == "cuda":
            check_placement(session)
        return session, graphs
    raise AssertionError("unreachable")


def _reason(message: str, doing: str = "load") -> str:
    """Onnxruntime's message as one line that says what to do."""
    if "INVALID_PROTOBUF" in message or "No graph was found" in message:
        return "not an ONNX file, or a damaged one; export it again"
    if lost := re.search(r'External data path does not exist: "(.*)"', message):
        return f"its external data {lost[1]} is missing; keep that file beside it"
    if "escapes model directory" in message or "Absolute path not allowed" in message:
        return "refused: its external data points outside its folder"
    if re.search("given file_length|external data size mismatch", message):
        return "its external data is not of the right length; copy or export it again"
    # "[ONNXRuntimeError] : 1 : FAIL : Load model from … failed:/path/file.cc:256 type f(…) text"
    text = message.split(" : ", 3)[-1].split(" failed:", 1)[-1]
    text = re.sub(r"^\S+\.(cc|h):\d+ .*?\) ", "", text, flags=re.DOTALL)
    return f"onnxruntime {ort.__version__} cannot {doing} it: {' '.join(text.split())}"


class OnnxCache(KVCache):
    """Keys and values as the graph gave them, on the engine's device.

    slots: (batch, slots) bool, which of the places along the cached axis hold a token of that row;
    rows of unequal length have gaps where their padding ran.
    """

    def __init__(
        self,
        past: Sequence[ort.OrtValue],
        slots: NDArray[np.bool_],
        lengths: NDArray[np.int64],
        max_length: int,
    ) -> None:
        super().__init__(lengths, max_length)
        self.past, self.slots = past, slots

    def copy(self) -> OnnxCache:
        """An independent cache with the same content (its tensors are never written again)."""
        return OnnxCache(self.past, self.slots, self.lengths, self.max_length)


class InPlaceCache(KVCache):
    """Buffers (batch, head, max_length, d_head) that the fused graph writes into.

    decoder: what runs one more token a row over these very buffers, once it has been needed.
    """

    def __init__(
        self,
        past: Sequence[ort.OrtValue],
        lengths: NDArray[np.int64],
        max_length: int,
        decoder: _Decoder | None = None,
    ) -> None:
        super().__init__(lengths, max_length)
        self.past, self.decoder = past, decoder

    def copy(self) -> InPlaceCache:
        """An independent cache with the same content."""
        past = [_zeros(x.shape(), x.element_type(), x.device_name()) for x in self.past]
        for new, old in zip(past, self.past, strict=True):
            new.update_inplace(old)
        return InPlaceCache(past, self.lengths, self.max_length)


class _Decoder:
    """One token a row, again and again, with nothing bound, allocated or shaped anew.

    All inputs and outputs keep their addresses and shapes, the mask as wide as the cache; so on
    CUDA the step is captured once as a graph and replayed.
    """

    _captured = itertools.count(1)

    def __init__(self, runner: OnnxRunner, past: Sequence[ort.OrtValue], width: int) -> None:
        rows, device = past[0].shape()[0], runner.device
        self.session, self.places = runner.session, np.arange(width)
        self.inputs = {
            name: _on_device(np.zeros((rows, columns), np.int64), device)
            for name, columns in (("input_ids", 1), ("position_ids", 1), ("attention_mask", width))
        }
        logits = np.zeros((rows, 1, runner.config.vocab_size), np.float32)
        self.logits = _on_device(logits, device)
        self.binding = runner.session.io_binding()
        fixed = {LOGITS_POSITIONS: _on_device(np.array([[-1]]), device)}
        fixed |= dict(zip(runner._past_names, past, strict=True))
        for name, value in {**self.inputs, **fixed}.items():
            self.binding.bind_ortvalue_input(name, value)
        presents = dict(zip(runner._present_names, past, strict=True))
        for name, value in {"logits": self.logits, **presents}.items():
            self.binding.bind_ortvalue_output(name, value)
        self.options = runner.run_options
        if runner.cuda_graphs:
            number = next(self._captured)
            self.options = _run_options(graph=number)
            weakref.finalize(self, self.session.release_captured_graph, number)

    def __call__(self, batch: Batch) -> ort.OrtValue:
        """Advance every row by its one token; returns logits (batch, 1, vocab) on the device, valid
        until the next call."""
        starts = batch.starts[:, None]
        for name, array in (
            ("input_ids", batch.ids),
            ("position_ids", starts),
            ("attention_mask", (self.places <= starts).astype(np.int64)),
        ):
            self.inputs[name].update_inplace(np.ascontiguousarray(array))
        self.session.run_with_iobinding(self.binding, self.options)
        return self.logits


def _on_device(array: NDArray[Any], device: str) -> ort.OrtValue:
    return ort.OrtValue.ortvalue_from_numpy(array, device)


def _zeros(shape: Sequence[int], kind: int, device: str) -> ort.OrtValue:
    """Zeros of an ONNX element type; numpy lends bfloat16 its bytes."""
    zeros = np.zeros(shape, np.float32 if kind == TensorProto.FLOAT else np.uint16)
    value = ort.OrtValue.ortvalue_from_numpy_with_onnx_type(zeros, kind)
    if device == "cpu":
        return value
    there = ort.OrtValue.ortvalue_from_shape_and_type(list(shape), kind, device)
    there.update_inplace(value)
    return there


class OnnxRunner:
    """A Runner on onnxruntime. `taps` are the names that the file carries."""

    def __init__(
        self, path: Path, session: ort.InferenceSession, device: str, cuda_graphs: bool = False
    ) -> None:
        meta = session.get_modelmeta().custom_metadata_map
        self.path, self.session, self.device, self.metadata = path, session, device, dict(meta)
        self.cuda_graphs = cuda_graphs
        try:
            self.config = GPT2Config.from_hf(json.loads(meta["gpt2kit.config"]))
            self.source = Source(meta["gpt2kit.model"], meta["gpt2kit.revision"] or None)
            self.taps: tuple[str, ...] = tuple(json.loads(meta["gpt2kit.taps"]))
            self.dtype: str = meta["gpt2kit.dtype"]
            self.profile: str = meta["gpt2kit.profile"]
            self.quantize: str | None = meta.get("gpt2kit.quantize") or None
        except (KeyError, ValueError) as error:
            raise EngineError(
                f"{path}: not made by gpt2kit; make it with `gpt2kit export --onnx`"
            ) from error
        self.tokenizer = Tokenizer.from_folder(path.parent)
        self._past_names = past_names(self.config.n_layer)
        self._present_names = present_names(self.config.n_layer)
        self.run_options = _run_options()

    def __repr__(self) -> str:
        c = self.config
        return (
            f"OnnxRunner({self.path.name}: {self.source}, {c.n_layer} layers, {c.n_head} heads, "
            f"d_model {c.n_embd}, {self.profile} {self.quantize or self.dtype} on {self.provider}, "
            f"{self.threads} threads, {len(self.taps)} taps)"
        )

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
        if edits:
            raise EditError(f"{self.path}: carries no edits; run them on the torch engine")
        wanted = self._wanted(taps)
        batch = prepare(ids, lengths, cache, self.config, top_k)
        if cache is not None and type(cache) is not self._cache_type:
            raise InputError(f"this engine needs a cache of its own, got {type(cache).__name__}")
        if isinstance(cache, InPlaceCache) or (cache is None and self.profile == "fused"):
            if cache is not None and batch.ids.shape[1] == 1 and not wanted:
                return self._decode(batch, cache, top_k)
            run = self._run_in_place(batch, cache, wanted, last_only)
        else:
            assert cache is None or isinstance(cache, OnnxCache)
            run = self._run_growing(batch, cache, wanted, last_only)
        if top_k is None:
            return run
        logits, top_ids = largest(run.logits, top_k)
        return replace(run, logits=logits, top_ids=top_ids)

    def _decode(self, batch: Batch, cache: InPlaceCache, top_k: int | None) -> Run:
        """One token a row, in the fused graph."""
        decoder = cache.decoder or _Decoder(self, cache.past, cache.max_length)
        logits, top_ids = self._take(self._attempt(partial(decoder, batch)), top_k)
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
        self, batch: Batch, cache: OnnxCache | None, wanted: tuple[str, ...], last_only: bool
    ) -> Run:
        """The portable graph: the cache comes out longer than it went in."""
        before = cache or self.new_cache(len(batch.ids))
        assert isinstance(before, OnnxCache)
        new = np.arange(batch.ids.shape[1]) < batch.lengths[:, None]
        slots = np.concatenate([before.slots, new], axis=1)
        presents = {} if cache is None else dict.fromkeys(self._present_names)
        outputs = self._execute(batch, slots, before.past, ["logits", *wanted], presents)
        logits, *values = (value.numpy() for value in outputs[: 1 + len(wanted)])
        if last_only:
            logits = logits[np.arange(len(logits)), batch.lengths - 1][:, None]
        found = {
            tap: _absolute_keys(_widen(value), tap, slots, batch.end)
            for tap, value in zip(wanted, values, strict=True)
        }
        taken = TapDict(found, self.config.n_layer)
        if cache is None:
            return Run(logits, taken, None)
        cache.spent = True
        present, ends = outputs[1 + len(wanted) :], batch.starts + batch.lengths
        return Run(logits, taken, OnnxCache(present, slots, ends, cache.max_length))

    def _run_in_place(
        self, batch: Batch, cache: InPlaceCache | None, wanted: tuple[str, ...], last_only: bool
    ) -> Run:
        """The fused graph: the cache is one buffer, past and present at once."""
        rows, columns = batch.ids.shape
        # GroupQueryAttention continues a batch of rows by one token at a time.
        single = rows > 1 and columns > 1 and bool(batch.starts.any())
        parts = [_column(batch, j) for j in range(columns)] if single else [batch]
        past = self.empty(rows) if cache is None else cache.past
        presents = {} if cache is None else dict(zip(self._present_names, past, strict=True))
        found: list[list[NDArray[Any]]] = []
        for part in parts:
            held = np.arange(part.end) < (part.starts + part.lengths)[:, None]
            kept = np.array([[-1]]) if last_only or single else np.arange(columns)[None]
            outputs = self._execute(part, held, past, ["logits", *wanted], presents, kept)
            found.append([value.numpy() for value in outputs[: 1 + len(wanted)]])
        logits, *values = (np.concatenate(x, axis=1) for x in zip(*found, strict=True))
        if last_only and single:
            logits = logits[np.arange(rows), batch.lengths - 1][:, None]
        taps = dict(zip(wanted, map(_widen, values), strict=True))
        taken = TapDict(taps, self.config.n_layer)
        if cache is None:
            return Run(logits, taken, None)
        cache.spent = True
        ends = batch.starts + batch.lengths
        return Run(logits, taken, InPlaceCache(cache.past, ends, cache.max_length))

    def _wanted(self, taps: str | Iterable[str]) -> tuple[str, ...]:
        wanted = resolve(taps, self.config.n_layer)
        missing = [tap for tap in wanted if tap not in self.taps]
        if missing:
            more = f" (and {len(missing) - 1} more)" if len(missing) > 1 else ""
            globs = " ".join(f"--taps '{glob}'" for glob in _globs(missing))
            raise TapError(
                f"{self.path.name} does not carry the tap {missing[0]!r}{more}; export it with "
                f"`gpt2kit export --onnx … {globs}`"
            )
        return wanted

    def _execute(
        self,
        batch: Batch,
        slots: NDArray[np.bool_],
        past: Sequence[ort.OrtValue],
        names: Sequence[str],
        presents: Mapping[str, ort.OrtValue | None],
        kept: NDArray[np.int64] | None = None,
    ) -> list[ort.OrtValue]:
        """Run the graph; the cache goes in and comes out on the device, the rest on the CPU.

        presents: the outputs to keep, into the given buffer or one of the engine's own.
        """
        binding = self.session.io_binding()
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
        for name, value in zip(self._past_names, past, strict=True):
            binding.bind_ortvalue_input(name, value)
        for name in names:
            binding.bind_output(name, "cpu")
        for name, buffer in presents.items():
            if buffer is None:
                binding.bind_output(name, self.device)
            else:
                binding.bind_ortvalue_output(name, buffer)
        self._attempt(lambda: self.session.run_with_iobinding(binding, self.run_options))
        outputs: list[ort.OrtValue] = binding.get_outputs()
        return outputs

    def _attempt(self, run: Callable[[], T]) -> T:
        try:
            return run()
        except Exception as error:  # onnxruntime's exceptions share no base of their own
            raise EngineError(f"{self.path}: {_reason(str(error), 'run')}") from error

    @property
    def _cache_type(self) -> type[KVCache]:
        return InPlaceCache if self.profile == "fused" else OnnxCache

    def new_cache(self, batch_size: int = 1, max_length: int | None = None) -> KVCache:
        """An empty cache for `batch_size` rows of at most `max_length` positions."""
        length = cache_length(max_length, self.config)
        lengths = np.zeros(batch_size, np.int64)
        if self.profile == "fused":
            return InPlaceCache(self.empty(batch_size, length), lengths, length)
        slots = np.zeros((batch_size, 0), bool)
        return OnnxCache(self.empty(batch_size), slots, lengths, length)

    def empty(self, batch_size: int, length: int = 0) -> list[ort.OrtValue]:
        """Keys and values of every layer, zeros; one tensor serves them all if it holds nothing."""
        c, count = self.config, len(self._past_names)
        shape = (batch_size, c.n_head, length, c.d_head)
        values = [
            _zeros(shape, ELEMENT[self.dtype], self.device) for _ in range(count if length else 1)
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
        return ort.InferenceSession(model, providers=_providers(self.device))

    @cached_property
    def _top_k(self) -> TopK:
        return TopK(_providers(self.device))

    @cached_property
    def _readout(self) -> ReadoutGraph:
        options, providers = _options(self.threads), _providers(self.device)
        return ReadoutGraph(self.path, self.config, self.device, options, providers=providers)

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
            open_tile=self._readout.tile,
            vectors=self._readout.vectors,
            width=self._readout.width,
        )


def _column(batch: Batch, j: int) -> Batch:
    """Column j as a run of its own. A row that has ended runs its last token once more, at the
    same place, which changes nothing."""
    place = np.minimum(j, batch.lengths - 1)
    ids = batch.ids[np.arange(len(place)), place][:, None]
    return Batch(ids, np.ones_like(batch.lengths), batch.starts + place)


def _globs(taps: Sequence[str]) -> list[str]:
    """Taps as few patterns: the same tap in several layers becomes `blocks.*.tap`."""
    kinds = [re.sub(r"^blocks\.\d+\.", "blocks.*.", tap) for tap in taps]
    pairs = zip(taps, kinds, strict=True)
    return list(dict.fromkeys(tap if kinds.count(kind) == 1 else kind for tap, kind in pairs))


def _widen(x: NDArray[Any]) -> Floats:
    return x.astype(np.float32) if x.dtype == np.float16 else x


def _absolute_keys(x: Floats, tap: str, slots: NDArray[np.bool_], end: int) -> Floats:
    """Close the gaps that padding left along the key axis, so that keys are absolute positions."""
    if axes_of(tap)[-1] != "key" or slots[:, :end].all():
        return x[..., :end] if axes_of(tap)[-1] == "key" else x
    out = np.zeros((*x.shape[:-1], end), x.dtype)
    for row, held in enumerate(slots):
        out[row, ..., : held.sum()] = x[row][..., held]
    return out
