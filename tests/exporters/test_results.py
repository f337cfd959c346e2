"""Every result of the exporters is text that fits, HTML, JSON that is read back, and a table."""

import importlib
import io
import json
import pkgutil
import re
from dataclasses import replace

import numpy as np
import pytest
from rich.cells import cell_len
from rich.console import Console

import exporters
from exporters.engine.bench import Bench
from exporters.file.inspection import inspect_onnx
from exporters.parity.cost import Cost
from exporters.parity.report import Report
from gpt2kit.errors import InputError
from gpt2kit.result import Result, Row

WORST = {
    "blocks.0.k": (float("nan"), "decode"),
    "present.0.key": (float("inf"), "decode"),
    "logits": (0.02, "edit of blocks.1.attn_scores"),
}
REPORT = Report(1e-4, ("prefill", "decode"), WORST, 9, 12, 1, source="random", dtype="float32")
COST = Cost("int8", 0.001, 0.98, (54.4, 54.5), 2040, "the end of a book")
QUANTISED = replace(REPORT, worst={"logits": (0.1, "decode")}, missed=None, cost=COST, dtype="int8")
BENCH = Bench(
    engine="OnnxRunner(x.onnx: random)", threads=2, load_ms=80.0, prefill_ms={128: 9.5, 512: 40.0},
    decode_ms=0.5, decode_from=128, weights=6_000_000, all_weights=7_000_000, file=7_100_000,
    peak=300_000_000, bandwidth=1.5e10, source="random", dtype="float32",
)  # fmt: skip
MAKERS = {
    "Bench": lambda path: BENCH,
    "Inspection": inspect_onnx,
    "Report": lambda path: REPORT,
}


def result_types() -> list[str]:
    for module in pkgutil.walk_packages(exporters.__path__, "exporters."):
        importlib.import_module(module.name)
    kinds, found = [Result], []
    while kinds:
        kinds += (kind := kinds.pop()).__subclasses__()
        found += [kind.__name__] if kind.__module__.startswith("exporters.") else []
    return sorted(found)


def drawn(result: Result, width: int) -> list[str]:
    console = Console(width=width, color_system=None, file=io.StringIO())
    with console.capture() as capture:
        console.print(result.render())
    return capture.get().splitlines()


def refused(name: str) -> None:
    raise AssertionError(f"{name} is not JSON")


def assert_plain(rows: list[Row]) -> None:
    assert rows
    assert len({tuple(row) for row in rows}) == 1  # the same columns in the same order
    plain = (str, int, float, bool, type(None))
    assert all(type(value) in plain for row in rows for value in row.values())


def test_no_result_is_left_out():
    assert set(result_types()) <= MAKERS.keys()


@pytest.mark.parametrize("name", result_types())
def test_a_result_can_be_read_everywhere(onnx_runner, name):
    result = MAKERS[name](onnx_runner.path)
    assert type(result).__name__ == name
    assert re.fullmatch(rf"{name}\(.+\)", repr(result))
    for width in (80, 200):
        assert max(map(cell_len, drawn(result, width))) <= width
    shown = re.sub(r"<[^>]*>", "", result._repr_html_())
    assert drawn(result, 200)[0].split()[0] in shown
    data = json.loads(result.to_json(), parse_constant=refused)
    assert data == result.to_dict()
    assert list(data)[:2] == ["kind", "schema_version"]
    assert set(vars(result)) - {"positions", "cost"} <= set(data)  # see test_a_saved_report
    assert type(result).from_json(result.to_json()) == result
    with pytest.raises(InputError, match="saved data of kind 'other' given"):
        type(result).from_dict(data | {"kind": "other"})
    assert_plain(result.table())
    assert result.to_csv().splitlines()[0] == ",".join(result.table()[0])


@pytest.mark.parametrize("report", [REPORT, QUANTISED], ids=["float32", "int8"])
def test_a_saved_report_holds_the_verdict(report):
    data = report.to_dict()
    assert data["kind"] == "parity report"
    assert data["top1"] == [9, 12]
    assert (data["passed"], data["diverged"]) == (report.passed, report.diverged)
    assert ("cost" in data) == (report.cost is not None)
    again = Report.from_json(report.to_json())
    assert again == report
    assert repr(again) == repr(report)
    assert (again.top1, again.positions, again.cost) == (9, 12, report.cost)


def test_numbers_that_json_lacks_are_words():
    data = REPORT.to_dict()["worst"]
    assert data["blocks.0.k"] == [None, "decode"]
    assert data["present.0.key"] == ["inf", "decode"]
    again = Report.from_dict(REPORT.to_dict()).worst
    assert np.isnan(again["blocks.0.k"][0])
    assert again["present.0.key"][0] == float("inf")


def test_a_summary_counts_the_cases_and_names_the_worst():
    summary = QUANTISED.summary()
    assert (summary["kind"], summary["cases"]) == ("parity summary", 2)
    assert summary["worst"] == ["logits", 0.1, "decode"]
    assert summary["cost"] == {
        "kind": "int8", "kl": 0.001, "top1": 0.98, "perplexity": [54.4, 54.5], "tokens": 2040,
        "text": "the end of a book", "bound": 0.01,
    }  # fmt: skip


def test_a_report_without_top_tokens_cannot_be_read():
    data = REPORT.to_dict()
    del data["top1"]
    with pytest.raises(InputError, match="saved data has no top1"):
        Report.from_dict(data)


def test_a_table_of_a_bench_names_its_units():
    rows = {row["figure"]: (row["value"], row["unit"]) for row in BENCH.table()}
    assert rows["prefill 512"] == (40.0, "ms")
    assert rows["peak memory"] == (300_000_000, "bytes")
    assert rows["memory floor"] == (pytest.approx(0.4), "ms")
    assert rows["decode / floor"] == (pytest.approx(1.25), "")


def test_a_figure_that_cannot_be_measured_is_left_out_of_the_text():
    few = replace(BENCH, file=None, peak=None, bandwidth=None)
    text = "\n".join(drawn(few, 80))
    assert not any(name in text for name in ("memory floor", "file", "peak"))
    assert Bench.from_json(few.to_json()) == few
    assert {row["value"] for row in few.table() if row["figure"] == "file"} == {None}
