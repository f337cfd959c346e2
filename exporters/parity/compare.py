"""Torch against ONNX: the gate that every export passes, and `gpt2kit verify`.

Both engines run the same token ids through prefill, chunks, single steps, batches with padding on
either side, a context filled to its last position, a random edit of every tap that the file lets
one edit, and all of those at once through the cache; logits, keys, values and every tap of the file
are compared wherever there is a token. A run that fetches a tap takes another session, or another
path, than one that does not; so a file with taps makes a prefill, steps and edits without them too.

The error of a value is its difference over the size of its vector: |onnx - torch| divided by the
largest |torch| along the last axis (at least the root mean square of the whole tensor, so that a
vector near zero is not held to its own size). The reference is torch in float32 on the file's own
weights, so a float16 file is charged for its arithmetic, not for the rounding it was asked for.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
import torch
from numpy.typing import NDArray

from exporters.engine.caches import InPlaceCache, OnnxCache
from exporters.engine.runner import OnnxRunner, open_onnx
from exporters.file.names import LOGITS_POSITIONS, past_names, present_names
from exporters.parity.cost import Cost, cost
from exporters.tracing.quantize import BITS, pack, unpack
from gpt2kit.batch import KVCache
from gpt2kit.config import GPT2Config
from gpt2kit.edit_arrays import Chunk
from gpt2kit.edits import Edit
from gpt2kit.errors import CheckpointError, ParityError
from gpt2kit.readout import Floats, Ints
from gpt2kit.runner import Run
from gpt2kit.taps import SCALE, SCORES, axes_of, tap_axes
from gpt2kit.torch_engine.cache import TorchCache
from gpt2kit.torch_engine.digest import weights_sha256
from gpt2kit.torch_engine.dtypes import DTYPES, on_cpu, rounded
from gpt2kit.torch_engine.load import load
from gpt2kit.torch_engine.runner import TorchRunner

# Of the error defined above; bfloat16 has 8 bits where float16 has 11. Quantised files are compared
# with their own weights in float32, but onnxruntime also rounds their activations to 8 bits, which
# single values may feel much; what they say as a whole is held to the bounds of `cost.py`.
TOLERANCE = {"float32": 1e-4, "float16": 2e-2, "bfloat16": 0.15, **dict.fromkeys(BITS, 0.4)}
DECODE_STEPS = 32
_Chunks = list[tuple[Ints, Any]]  # ids and lengths of one run after the other


@dataclass(frozen=True)
class Report:
    """What was compared and how far apart it was.

    dtype: of the weights: "float32", "float16", "int8", "int4".
    cost: what quantisation did to the predictions, if the file is quantised.
    worst: quantity ("logits", "present.3.key", or a tap) -> (error, the case it occurred in),
           in the order of the forward pass.
    top1, positions: at how many positions both engines rank the same token first, of how many.
    missed: how many of the others torch did not hold for a tie within the tolerance; None for a
            quantised file, whose tolerance makes a tie of nearly any two tokens: its cost decides.
    """

    dtype: str
    tolerance: float
    cases: tuple[str, ...]
    worst: dict[str, tuple[float, str]]
    top1: int
    positions: int
    missed: int | None
    cost: Cost | None = None

    @property
    def diverged(self) -> str | None:
        """The first quantity of the forward pass that is out of tolerance."""
        return next(
            (q for q, (error, _) in self.worst.items() if not error <= self.tolerance), None
        )

    @property
    def passed(self) -> bool:
        """Whether every quantity is within tolerance, and the same token leads everywhere or, of a
        quantised file, the cost is within its bound."""
        return self.diverged is None and not self.missed and (self.cost is None or self.cost.fits)

    def raise_if_failed(self) -> None:
        """Raise ParityError, naming the first divergence, unless the report passed."""
        if self.diverged:
            error, case = self.worst[self.diverged]
            raise ParityError(
                f"torch and ONNX part at {self.diverged} in '{case}': error {error:.2e}, the "
                f"tolerance for {self.dtype} is {self.tolerance:.0e}"
            )
        if self.missed:
            raise ParityError(f"torch and ONNX rank another token first at {self.missed} positions")
        if self.cost is not None and not self.cost.fits:
            raise ParityError(
                f"{self.dtype} costs this model too much: a KL divergence of {self.cost.kl:.3g} "
                f"nats, the bound is {self.cost.bound:g}; take int8, or leave --quantize out"
            )

    def to_json(self) -> dict[str, Any]:
        """Plain data: the worst error of every quantity (None: not finite), and the verdict."""
        return {
            "passed": self.passed,
            "dtype": self.dtype,
            "tolerance": self.tolerance,
            "cases": list(self.cases),
            "top1": [self.top1, self.positions],
            "worst": {q: [_number(error), case] for q, (error, case) in self.worst.items()},
            "diverged": self.diverged,
        } | ({"cost": self.cost.to_json()} if self.cost else {})

    def summary(self) -> dict[str, Any]:
        """The same in a few entries: what a file says of itself."""
        quantity = max(self.worst, key=lambda q: self.worst[q][0])
        whole = self.to_json()
        return whole | {"cases": len(self.cases), "worst": [quantity, *whole["worst"][quantity]]}

    def kinds(self) -> dict[str, tuple[float, str, str]]:
        """Kind of quantity (logits, keys, values, or a tap without its layer) -> its worst error,
        the case, and the full name."""
        out: dict[str, tuple[float, str, str]] = {}
        for name, (error, case) in self.worst.items():
            kind = name.rsplit(".", 1)[-1]
            kind = {"key": "cached keys", "value": "cached values"}.get(kind, kind)
            if kind not in out or not error <= out[kind][0]:
                out[kind] = error, case, name
        return out


def _number(error: float) -> float | None:
    return float(f"{error:.3g}") if np.isfinite(error) else None  # JSON knows no NaN


def verify(
    path: str | os.PathLike[str], *, model: str | None = None, device: str = "auto"
) -> Report:
    """Compare an exported file with the checkpoint that its metadata, or `model`, names.

    Raises CheckpointError if those are not the weights the file was made from. The report says
    whether the engines agree; `raise_if_failed` turns that into an error.
    """
    onnx = open_onnx(path, device=device)
    if model is None and onnx.source.revision is None and onnx.source.model != "bundled":
        raise CheckpointError(
            f"{path}: was made from the folder {onnx.source}; say with --model where that is"
        )
    try:
        revision = None if model else onnx.source.revision
        runner = load(model or onnx.source.model, revision=revision, device="cpu")
    except CheckpointError as error:
        if model is not None:
            raise
        raise CheckpointError(
            f"{path}: made from {onnx.source}, which is not at hand ({error}); name its folder "
            "with --model"
        ) from error
    if (
        weights_sha256(rounded(runner, DTYPES[onnx.dtype]).model)
        != onnx.metadata["gpt2kit.weights_sha256"]
    ):
        raise CheckpointError(f"{path}: was made from other weights than {model or onnx.source}")
    return compare(runner, onnx)


def check(runner: TorchRunner, path: Path, device: str = "cpu") -> Report:
    """Compare a file just written with the model it was traced from."""
    return compare(runner, open_onnx(path, device=device))


def compare(runner: TorchRunner, onnx: OnnxRunner) -> Report:
    """Run every case on both engines."""
    precision = onnx.quantize or onnx.dtype
    reference = rounded(runner, DTYPES[onnx.dtype])
    loss = None
    if onnx.quantize:
        loss = cost(reference, onnx)
        packed = pack(on_cpu(runner.model, torch.float32), onnx.quantize)
        reference = TorchRunner(unpack(packed), runner.tokenizer, runner.source)
    tally = _Tally(TOLERANCE[precision])
    for case, torch_side, onnx_side in _cases(reference, onnx):
        tally.add(case, torch_side, onnx_side, onnx.config.n_layer)
    order = _forward_order(onnx)
    worst = {name: tally.worst[name] for name in sorted(tally.worst, key=order.__getitem__)}
    cases = tuple(dict.fromkeys(tally.cases))
    counts = tally.top1, tally.positions, None if onnx.quantize else tally.missed
    return Report(precision, tally.tolerance, cases, worst, *counts, cost=loss)


def _forward_order(onnx: OnnxRunner) -> dict[str, int]:
    """Every quantity that is compared -> its place in the forward pass."""
    names: list[str] = []
    for tap in tap_axes(onnx.config.n_layer):
        names.append(tap)
        if tap.endswith(".v"):  # what is cached is what these taps show
            layer = tap.split(".")[1]
            names += [f"present.{layer}.key", f"present.{layer}.value"]
    return {name: place for place, name in enumerate([*names, "logits"])}


@dataclass
class _Side:
    """One engine's side of one comparison: quantity -> one array a row, padding cut away."""

    logits: list[Floats]
    rest: dict[str, list[Floats]]


@dataclass
class _Tally:
    tolerance: float
    worst: dict[str, tuple[float, str]] = field(default_factory=dict)
    cases: list[str] = field(default_factory=list)
    top1: int = 0
    positions: int = 0
    missed: int = 0

    def add(self, case: str, expected: _Side, got: _Side, n_layer: int) -> None:
        self.cases.append(case)
        for name, rows in {"logits": expected.logits, **expected.rest}.items():
            ours = got.logits if name == "logits" else got.rest[name]
            error = float(
                np.max([_error(a, b) for a, b in zip(rows, ours, strict=True)])
            )  # keeps NaN
            if name not in self.worst or not error <= self.worst[name][0]:  # NaN is the worst
                self.worst[name] = error, case
        for want, have in zip(expected.logits, got.logits, strict=True):
            places = np.arange(len(want))
            best, chosen = want.argmax(-1), have.argmax(-1)
            gap = (want[places, best] - want[places, chosen]) / _size(want)[:, 0]
            self.top1 += int((best == chosen).sum())
            self.missed += int((gap > 2 * self.tolerance).sum())
            self.positions += len(want)


def _size(x: Floats) -> Floats:
    """(…, 1) what a difference from x is measured against."""
    rms = float(np.linalg.norm(x)) / np.sqrt(x.size)  # one pass, no copy
    size: Floats = np.maximum(np.abs(x).max(-1, keepdims=True), max(rms, 1e-30))
    return size


def _error(expected: Floats, got: Floats) -> float:
    if expected.shape != got.shape:
        return float("inf")
    return float((np.abs(got - expected) / _size(expected)).max()) if expected.size else 0.0


def _cases(reference: TorchRunner, onnx: OnnxRunner) -> Iterator[tuple[str, _Side, _Side]]:
    """(case, torch, onnx) for every run of every case."""
    c, rng = onnx.config, np.random.default_rng(0)
    context = c.n_positions

    def draw(batch: int, pos: int) -> Ints:
        return rng.integers(0, c.vocab_size, (batch, max(1, min(pos, context))))

    def both(
        case: str,
        chunks: _Chunks,
        edits: Sequence[Edit] = (),
        taps: tuple[str, ...] = onnx.taps,
    ) -> Iterator[tuple[str, _Side, _Side]]:
        pair: list[tuple[Any, KVCache]] = [
            (r, r.new_cache(len(chunks[0][0]))) for r in (reference, onnx)
        ]
        for ids, lengths in chunks:
            sides = []
            for i, (runner, cache) in enumerate(pair):
                starts = cache.lengths
                run = runner.run(ids, taps=taps, cache=cache, lengths=lengths, edits=edits)
                assert run.cache is not None
                pair[i] = runner, run.cache
                sides.append(_side(run, starts, onnx))
            yield case, sides[0], sides[1]

    ids = draw(2, 48)
    yield from both("prefill", [(ids, None)])
    cuts = [cut for cut in (7, 8, 21) if cut < ids.shape[1]]
    yield from both("chunked prefill", [(part, None) for part in np.split(ids, cuts, axis=1)])
    ids = draw(1, 5 + DECODE_STEPS)
    steps = [(ids[:, i : i + 1], None) for i in range(5, ids.shape[1])]
    plain: dict[str, _Chunks] = {"decode without taps": [(ids[:, :5], None), *steps[:8]]}
    yield from both("decode", [(ids[:, :5], None), *steps])
    ids = draw(3, 24)
    lengths = np.maximum([ids.shape[1], ids.shape[1] // 3, 1], 1)
    after = [(draw(3, 1), None) for _ in range(min(4, context - ids.shape[1]))]
    plain["padding without taps"] = [(ids, lengths), *after]
    yield from both("right padding", [(ids, lengths), *after])
    steps_after = [step for step, _ in after]
    if onnx.profile == "portable":
        yield from _foreign("left padding", reference, onnx, ids, lengths, steps_after)
    else:
        whole = np.full(len(ids), ids.shape[1])
        yield from _foreign("cache not shared", reference, onnx, ids, whole, steps_after)
    ids = draw(1, context)
    cuts = [context - n for n in (3, 2, 1) if n < context]
    yield from both("full context", [(part, None) for part in np.split(ids, cuts, axis=1)])
    for case, chunks in plain.items() if onnx.taps else ():
        yield from both(case, chunks, taps=())
    ids = draw(2, 6)
    for tap in onnx.edits:
        yield from both(f"edit of {tap}", [(ids, None)], [_random_edit(tap, ids, c)])
    if onnx.edits:
        edits = [_local_edit(tap, ids) for tap in onnx.edits]
        parts = [(ids[:, :2], np.array([2, 1])), (ids[:, 2:4], None)]  # a gap in the padded row
        parts += [(ids[:, i : i + 1], None) for i in range(4, ids.shape[1])]
        yield from both("edits through the cache", parts, edits)
        if onnx.taps:
            yield from both("edits without taps", parts, edits, ())
        stepped = [edit for edit in edits if axes_of(edit.tap) != SCORES]  # by the bound step
        if onnx.profile == "fused" and 0 < len(stepped) < len(edits):
            yield from both("edits but of scores", parts, stepped, ())


def _random_edit(tap: str, ids: Ints, config: GPT2Config) -> Edit:
    """A factor and a summand for every entry of the last axis, always the same for one tap; a scale
    is only multiplied, for a small one, made smaller, would blow up all errors."""
    rng = np.random.default_rng(list(tap.encode()))
    chunk = Chunk(np.zeros(len(ids), np.int64), ids.shape[1], ids.shape[1])
    size = chunk.size(axes_of(tap)[-1], config)
    add = 0.0 if axes_of(tap) == SCALE else rng.uniform(-0.1, 0.1, size)
    return Edit(tap, rng.uniform(0.7, 1.3, size), add)


def _local_edit(tap: str, ids: Ints) -> Edit:
    """A small change at every other position of the last row."""
    axes, last = axes_of(tap), len(ids) - 1
    axis = "query" if "query" in axes else "pos"
    add = 0.0 if axes == SCALE else 0.01
    return Edit(tap, 0.95, add, {"batch": last, axis: slice(1, ids.shape[1], 2)})


def _side(run: Run, starts: Ints, onnx: OnnxRunner) -> _Side:
    """The valid part of a run: row by row, up to its length along every axis of positions."""
    assert run.cache is not None
    ends = run.cache.lengths
    logits = [x[: end - start] for x, start, end in zip(run.logits, starts, ends, strict=True)]
    rest = {
        name: [
            _cut(row, axes_of(name)[1:], int(end - start), int(end))
            for row, start, end in zip(x, starts, ends, strict=True)
        ]
        for name, x in run.taps.items()
    }
    return _Side(logits, rest | _kv(run.cache, onnx))


def _cut(row: Floats, axes: tuple[str, ...], pos: int, keys: int) -> Floats:
    limits = {"pos": pos, "query": pos, "key": keys}
    return _causal(row[tuple(slice(limits.get(axis)) for axis in axes)], axes)


def _causal(row: Floats, axes: tuple[str, ...]) -> Floats:
    """Scores without those of keys that are yet to come: they have no part in anything, and where
    one token is run at a time they do not exist."""
    if axes != SCORES[1:]:
        return row
    pos, keys = row.shape[-2:]
    return np.where(np.tri(pos, keys, keys - pos, dtype=bool), row, 0)


def _kv(cache: KVCache, onnx: OnnxRunner) -> dict[str, list[Floats]]:
    """present.{i}.key|value -> (head, pos, d_head) a row."""
    out = {}
    if isinstance(cache, TorchCache):
        for layer in range(len(cache.keys)):
            for part, x in (("key", cache.keys[layer]), ("value", cache.values[layer])):
                rows = zip(x, cache.lengths, strict=True)
                out[f"present.{layer}.{part}"] = [row[:, : int(n)].numpy() for row, n in rows]
    elif isinstance(cache, OnnxCache | InPlaceCache):
        names = present_names(len(cache.past) // 2)
        for name, value in zip(names, cache.past, strict=True):
            rows = zip(onnx.read(value), _slots(cache), strict=True)
            out[name] = [row[:, held] for row, held in rows]
    return out


def _slots(cache: OnnxCache | InPlaceCache) -> NDArray[np.bool_]:
    """(batch, slots) which places of the cache hold a token."""
    if isinstance(cache, OnnxCache):
        return cache.slots
    held: NDArray[np.bool_] = np.arange(cache.max_length) < cache.lengths[:, None]
    return held


def _foreign(
    case: str,
    reference: TorchRunner,
    onnx: OnnxRunner,
    ids: Ints,
    lengths: Ints,
    after: list[Ints],
) -> Iterator[tuple[str, _Side, _Side]]:
    """Rows of these lengths, padded on the left, fed to the graph as other clients feed it, with a
    cache that comes out longer than it went in; against the same rows each by itself."""
    width = ids.shape[1]
    padded = np.zeros_like(ids)
    mask = np.arange(width) >= width - lengths[:, None]
    for row, given, n in zip(padded, ids, lengths, strict=True):
        row[width - n :] = given[:n]
    past = onnx.empty(len(ids))
    caches: list[KVCache] = [reference.new_cache(1) for _ in ids]
    chunks = [(padded, mask), *((step, np.ones_like(step, bool)) for step in after)]
    seen = np.zeros((len(ids), 0), bool)
    for chunk, valid in chunks:
        seen = np.concatenate([seen, valid], 1)
        outputs = _raw(onnx, chunk, seen, past)
        past = [outputs[name] for name in present_names(onnx.config.n_layer)]
        runs, starts = [], [cache.lengths for cache in caches]
        for row, cache in enumerate(caches):
            runs.append(reference.run(chunk[row][valid[row]], taps=onnx.taps, cache=cache))
            caches[row] = runs[-1].cache or cache
        sides = [_side(run, start, onnx) for run, start in zip(runs, starts, strict=True)]
        expected = _Side(
            [side.logits[0] for side in sides],
            {name: [side.rest[name][0] for side in sides] for name in sides[0].rest},
        )
        got = {
            name: [
                _held(x, _axes(name), valid[row], seen[row])
                for row, x in enumerate(onnx.read(value))
            ]
            for name, value in outputs.items()
        }
        yield case, expected, _Side(got.pop("logits"), got)


def _raw(
    onnx: OnnxRunner, ids: Ints, seen: NDArray[np.bool_], past: Sequence[ort.OrtValue]
) -> dict[str, ort.OrtValue]:
    """Every output of the graph, by name, with positions counted from the mask."""
    positions = np.maximum(seen.cumsum(1) - 1, 0)[:, -ids.shape[1] :]
    feeds = {"input_ids": ids, "attention_mask": seen.astype(np.int64), "position_ids": positions}
    if onnx.profile == "fused":
        feeds[LOGITS_POSITIONS] = np.arange(ids.shape[1])[None]
    values = {name: ort.OrtValue.ortvalue_from_numpy(array) for name, array in feeds.items()}
    values |= dict(zip(past_names(onnx.config.n_layer), past, strict=True))
    session = onnx.carrying(onnx.taps)
    names = [output.name for output in session.get_outputs()]
    outputs = session.run_with_ort_values(names, values, onnx.run_options)
    return dict(zip(names, outputs, strict=True))


def _axes(name: str) -> tuple[str, ...]:
    """Axes of one row of a graph output."""
    if name == "logits":
        return ("pos", "vocab")
    return ("head", "key", "d_head") if name.startswith("present.") else axes_of(name)[1:]


def _held(
    row: Floats, axes: tuple[str, ...], valid: NDArray[np.bool_], seen: NDArray[np.bool_]
) -> Floats:
    """The part of one row that belongs to tokens."""
    for dim, axis in enumerate(axes):
        if axis in ("pos", "query"):
            row = np.compress(valid, row, axis=dim)
        elif axis == "key":
            row = np.compress(seen, row, axis=dim)
    return _causal(row, axes)
