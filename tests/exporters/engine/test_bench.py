"""`gpt2kit bench`: every figure is there and they fit together; their size is not tested."""

import json
import os
import re
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
from click.testing import CliRunner

import exporters.engine.bench as bench_module
from exporters import OnnxRunner, export_onnx, open_onnx
from exporters.engine import memory
from exporters.engine.bench import Bench, bench
from exporters.engine.memory import model_sizes, read_bandwidth
from exporters.parity import cost
from gpt2kit import TorchRunner
from gpt2kit.cli import main
from gpt2kit.errors import InputError
from gpt2kit.runner import Source
from tests.conftest import CONFIG, byte_tokenizer, random_model


def test_every_figure_is_measured(runner, torch_runner):
    found = bench(lambda: runner, repeats=1)
    context = runner.config.n_positions
    assert list(found.prefill_ms) == [context]  # too small for 128 and 512
    assert found.decode_from == context // 2
    assert min(found.load_ms, found.decode_ms, *found.prefill_ms.values()) > 0
    assert found.floor_ms == pytest.approx(1e3 * found.weights / found.bandwidth)
    assert found.over_floor == pytest.approx(found.decode_ms / found.floor_ms)
    weights = 4 * sum(weight.numel() for weight in torch_runner.model.parameters())
    assert found.all_weights == pytest.approx(weights, rel=0.02)
    assert found.weights == found.all_weights - 4 * context * runner.config.n_embd
    assert (found.file is None) == (not isinstance(runner, OnnxRunner))
    assert found.peak > 10_000_000
    assert Bench.from_json(found.to_json()) == found
    assert json.loads(found.to_json())["over_floor"] == found.over_floor


WIDE = replace(CONFIG, n_embd=128, n_head=2, n_layer=1, n_positions=256)


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize(
    ("profile", "quantize"),
    [("torch", None), ("portable", None), ("fused", None), ("fused", "int8"), ("portable", "int4")],
)
def test_what_a_step_reads_leaves_out_tables_of_which_it_takes_a_row(
    tmp_path, monkeypatch, tied, profile, quantize
):
    config = replace(WIDE, tie_word_embeddings=tied)
    runner = TorchRunner(random_model(config), byte_tokenizer(), Source("random"))
    if profile != "torch":
        monkeypatch.setattr(cost, "BOUND", dict.fromkeys(cost.BOUND, 9.0))  # random weights
        export_onnx(runner, tmp_path / "x.onnx", profile=profile, quantize=quantize)
        runner = open_onnx(tmp_path / "x.onnx", device="cpu")
    # Bytes of a weight; quantised, each block has a scale and a zero point besides.
    sizes = {8: 1 + (4 + 1) / 128, 4: (1 + (8 + 1) / 64) / 2, 32: 4}
    bits, head_bits = {"int8": (8, 8), "int4": (4, 8)}.get(quantize, (32, 32))
    d = config.n_embd
    table = config.vocab_size * d * sizes[head_bits]
    read = 12 * d * d * sizes[bits] + table + 4 * 15 * d  # the last: norms and biases
    sizes = model_sizes(runner)
    assert sizes.weights == pytest.approx(read, rel=0.005)
    looked_up = 4 * config.n_positions * d + (0 if tied else table)
    assert sizes.all_weights - sizes.weights == pytest.approx(looked_up, rel=0.06)


def test_bandwidth_is_of_this_century():
    assert 1e8 < read_bandwidth(1) < 1e13


def test_what_is_read_does_not_grow_with_the_threads(monkeypatch):
    sizes, ones = [], np.ones

    def spy(count: int) -> np.ndarray:
        sizes.append(count)
        return ones(count)

    monkeypatch.setattr(np, "ones", spy)
    monkeypatch.setattr(memory, "_BUFFER", 1 << 20)
    monkeypatch.setattr(memory, "_SHARE", 1 << 18)
    monkeypatch.setattr(memory.os, "cpu_count", lambda: 48)
    assert all(read_bandwidth(threads) > 0 for threads in (1, 2, 3, 48))
    assert sizes == [1 << 17] * 4


def test_the_command_prints_a_table_and_json(fused_runner):
    given = ["bench", "--onnx", str(fused_runner.path), "--threads", "1"]
    table = CliRunner().invoke(main, given)
    assert table.exit_code == 0, table.output
    for word in (
        "load",
        "prefill 40",
        "decode",
        "memory floor",
        "file",
        "peak memory",
        "1 threads",
    ):
        assert word in table.output
    found = json.loads(CliRunner().invoke(main, [*given, "--json"]).stdout)
    assert found["threads"] == 1
    assert found["floor_ms"] > 0


@pytest.mark.parametrize("threads", [-1, 0, os.cpu_count() + 1, 100_000])
def test_threads_are_1_to_the_cores_of_the_machine(monkeypatch, runner, threads):
    monkeypatch.setattr(bench_module, "_threads", lambda _: threads)
    message = f"{threads} threads: there must be 1 to {os.cpu_count()}, the cores of this machine"
    for refused in (lambda: read_bandwidth(threads), lambda: bench(lambda: runner)):
        with pytest.raises(InputError, match=re.escape(message)):
            refused()
    done = CliRunner().invoke(main, ["bench", "--model", "bundled", "--threads", str(threads)])
    assert done.exit_code == 2
    assert done.output.strip().splitlines() == [f"gpt2kit: error: {message}"]


def test_another_engine_is_refused():
    with pytest.raises(InputError, match="bench measures models on torch and onnxruntime, not "):
        model_sizes(SimpleNamespace())


def test_a_context_of_one_is_refused():
    runner = TorchRunner(random_model(replace(CONFIG, n_positions=1)), byte_tokenizer())
    with pytest.raises(InputError, match="a context of 1 holds no second one"):
        bench(lambda: runner)
