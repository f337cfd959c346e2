"""`benchmarks/` turns measurements into lines of a table. The measurements are made up."""

import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"


@pytest.fixture
def ratios(monkeypatch):
    monkeypatch.syspath_prepend(BENCHMARKS)
    import ratios

    yield ratios
    for file in BENCHMARKS.glob("*.py"):
        sys.modules.pop(file.stem, None)


@pytest.mark.parametrize(("rounds", "turns"), [(1, 3), (5, 5)])
def test_lens_memory_is_of_fresh_processes_in_turn(ratios, monkeypatch, rounds, turns):
    """Ours need 30 MB above 1000; TransformerLens 150 in its first process and 900 in the rest."""
    started, ended = [], []

    def start(name: str) -> SimpleNamespace:
        process = SimpleNamespace(name=name, grown=0, wait=lambda: ended.append(process))
        process.kill = lambda: None
        started.append(process)
        return process

    def request_of(process: SimpleNamespace, request: dict) -> dict | None:
        assert len(started) == len(ended) + 1  # one at work at a time
        if request["do"] == "lens":
            theirs = 150 if len(started) == 2 else 900
            process.grown = 30 if process.name == "gpt2kit torch" else theirs
        return {"now": 1000, "peak": 1000 + process.grown}

    monkeypatch.setattr(ratios, "reply", lambda _: 1.0)
    monkeypatch.setattr(ratios, "request_of", request_of)
    rows = ratios.lens_memory(SimpleNamespace(start=start, rounds=rounds))
    assert [process.name for process in started] == ["gpt2kit torch", "TransformerLens"] * turns
    assert rows == [
        "| logit lens memory over TransformerLens' (medians: 30 MB, 900 MB) "
        "| 0.03 (0.03 to 0.20) | at most 0.1 |"
    ]
