"""Run every case on both engines and keep the worst error of each quantity.

The error of a value is |onnx - torch| divided by the size of its vector: the largest |torch| along
the last axis, but at least the root mean square of the whole tensor, so that a vector near zero is
not measured against its own tiny size. The reference is torch in float32 with the file's own
weights: a float16 file is charged for its arithmetic, not for the rounding of its weights.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch

from exporters.engine.runner import OnnxRunner
from exporters.file.packing import BITS
from exporters.parity.cases import Case, CaseTokens, cases_for, draw_tokens
from exporters.parity.cost import Cost, measure_cost
from exporters.parity.other_client import run_other_client
from exporters.parity.report import Report
from exporters.parity.token_rows import TokenRows, token_rows
from exporters.tracing.quantize import pack, unpack
from gpt2kit.batch import KVCache
from gpt2kit.finite import finite_run, is_finite
from gpt2kit.readout import Floats
from gpt2kit.result import model_header
from gpt2kit.runner import Runner
from gpt2kit.taps import tap_axes
from gpt2kit.torch_engine.dtypes import DTYPES, on_cpu, rounded
from gpt2kit.torch_engine.runner import TorchRunner

# Largest error allowed; bfloat16 has 8 bits of precision, float16 has 11. A quantised file is
# compared with its own weights in float32, but onnxruntime also rounds activations to 8 bits, which
# can move single values far. Its predictions as a whole are held to the bounds of `cost.py`.
TOLERANCE = {"float32": 1e-4, "float16": 2e-2, "bfloat16": 0.15, **dict.fromkeys(BITS, 0.4)}


def compare(runner: TorchRunner, onnx: OnnxRunner) -> Report:
    """Run every case that applies to a file on both engines.

    Raises NonFiniteError if the model itself overflows in the file's dtype.
    """
    reference = rounded(runner, DTYPES[onnx.dtype])
    cost: Cost | None = None
    if onnx.quantize:
        cost = measure_cost(reference, onnx)
        packed = pack(on_cpu(runner.model, torch.float32), onnx.quantize)
        reference = TorchRunner(unpack(packed), runner.tokenizer, runner.source)
    tally, tokens = Tally(TOLERANCE[onnx.precision]), draw_tokens(onnx.config)
    names: list[str] = []
    finite = True
    for case in cases_for(onnx):
        names.append(case.name)
        for expected, got in run_case(case, tokens, reference, onnx):
            if finite and not _all_finite(expected, got):
                finite = False
                _refuse_overflow(reference, onnx, tokens)
            tally.add(case.name, expected, got)
    order = forward_order(onnx.config.n_layer)
    return Report(
        tolerance=tally.tolerance,
        cases=tuple(names),
        worst={name: tally.worst[name] for name in sorted(tally.worst, key=order.__getitem__)},
        top1=tally.top1,
        positions=tally.positions,
        missed=None if onnx.quantize else tally.missed,
        cost=cost,
        **model_header(onnx),
    )


def _all_finite(*outputs: TokenRows) -> bool:
    """Whether both engines gave finite values alone."""
    return all(is_finite(row) for found in outputs for rows in found.values() for row in rows)


def _refuse_overflow(reference: TorchRunner, onnx: OnnxRunner, tokens: CaseTokens) -> None:
    """Raise NonFiniteError if torch overflows as well, in the file's dtype.

    If it does not, the file is wrong.
    """
    model = on_cpu(reference.model, DTYPES[onnx.dtype])
    same = TorchRunner(model, reference.tokenizer, reference.source)
    for ids in (tokens.prompts, tokens.decoded, tokens.context):
        finite_run(same, ids, taps=onnx.taps)


def run_case(
    case: Case, tokens: CaseTokens, reference: TorchRunner, onnx: OnnxRunner
) -> Iterator[tuple[TokenRows, TokenRows]]:
    """What torch and ONNX give in each run of a case."""
    steps = case.steps(tokens)
    if case.other_client:
        yield from run_other_client(steps, reference, onnx)
        return
    taps, edits = onnx.taps if case.with_taps else (), case.edits(onnx, tokens)
    runners: tuple[Runner, Runner] = reference, onnx
    caches: list[KVCache] = [runner.new_cache(len(steps[0][0])) for runner in runners]
    for ids, lengths in steps:
        outputs: list[TokenRows] = []
        for i, runner in enumerate(runners):
            starts = caches[i].lengths
            run = runner.run(ids, taps=taps, cache=caches[i], lengths=lengths, edits=edits)
            assert run.cache is not None
            caches[i] = run.cache
            outputs.append(token_rows(run, starts, onnx))
        yield outputs[0], outputs[1]


def forward_order(n_layer: int) -> dict[str, int]:
    """Every quantity that is compared -> its place in the forward pass."""
    names: list[str] = []
    for tap in tap_axes(n_layer):
        names.append(tap)
        if tap.endswith(".v"):  # the cache holds what the taps `k` and `v` show
            layer = tap.split(".")[1]
            names += [f"present.{layer}.key", f"present.{layer}.value"]
    return {name: place for place, name in enumerate([*names, "logits"])}


class Tally:
    """The worst error of each quantity so far, and how often the top tokens agree.

    worst: quantity -> (error, case). missed: positions whose top tokens differ although torch does
    not hold their logits for a tie within the tolerance.
    """

    def __init__(self, tolerance: float) -> None:
        self.tolerance = tolerance
        self.worst: dict[str, tuple[float, str]] = {}
        self.top1 = self.positions = self.missed = 0

    def add(self, case: str, expected: TokenRows, got: TokenRows) -> None:
        """Count one run in. NaN is worse than any error."""
        for name, rows in expected.items():
            pairs = zip(rows, got[name], strict=True)
            error = float(np.max([relative_error(*pair) for pair in pairs]))  # keeps NaN
            if name not in self.worst or not error <= self.worst[name][0]:
                self.worst[name] = error, case
        for want, have in zip(expected["logits"], got["logits"], strict=True):
            self._count_top_tokens(want, have)

    def _count_top_tokens(self, want: Floats, have: Floats) -> None:
        """want, have: logits (pos, vocab) of one row."""
        places = np.arange(len(want))
        best, chosen = want.argmax(-1), have.argmax(-1)
        gap = (want[places, best] - want[places, chosen]) / vector_size(want)[:, 0]
        self.top1 += int((best == chosen).sum())
        self.missed += int((gap > 2 * self.tolerance).sum())
        self.positions += len(want)


def relative_error(expected: Floats, got: Floats) -> float:
    """The largest error of all values (see the top of this file); infinite for another shape."""
    if expected.shape != got.shape:
        return float("inf")
    if not expected.size:
        return 0.0
    return float((np.abs(got - expected) / vector_size(expected)).max())


def vector_size(x: Floats) -> Floats:
    """(…, 1) the size that a difference from each vector of x is divided by."""
    rms = float(np.linalg.norm(x)) / np.sqrt(x.size)  # `norm` makes no copy of x
    size: Floats = np.maximum(np.abs(x).max(-1, keepdims=True), max(rms, 1e-30))
    return size
