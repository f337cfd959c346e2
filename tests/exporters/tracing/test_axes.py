"""The names of axes: other clients size their caches by them."""

import itertools
import logging
import warnings

import pytest
import torch

from exporters.tracing.description import describe
from exporters.tracing.plan import Plan
from exporters.tracing.quantize import pack
from exporters.tracing.trace import trace
from exporters.tracing.warned import expected_warnings_only
from gpt2kit import GPT2Config, TorchRunner
from gpt2kit.errors import ExportError
from gpt2kit.runner import Source
from gpt2kit.taps import axes_of, tap_axes
from gpt2kit.torch_engine.dtypes import DTYPES, on_cpu
from tests.conftest import random_model

CONFIG = GPT2Config(
    vocab_size=60, n_positions=20, n_embd=32, n_layer=2, n_head=2, bos_token_id=0, eos_token_id=0
)
SIZES = {"head": 2, "d_head": 16, "d_model": 32, "d_mlp": 128}
NAMES = {
    "batch": "batch_size",
    "pos": "sequence_length",
    "query": "sequence_length",
    "key": "total_sequence_length",
}
TAPS = tuple(tap_axes(CONFIG.n_layer))
WITHOUT_HEADS = tuple(tap for tap in TAPS if not tap.endswith("head_out"))
SOME = ("blocks.0.z", "blocks.1.pattern", "blocks.1.resid_post")
PLANS = [
    {},
    {"taps": TAPS},
    {"edits": ("blocks.0.z", "blocks.1.attn_scores")},
    {"taps": SOME, "edits": SOME, "edits_required": True},
    {"dtype": "float16"},
    {"dtype": "float16", "taps": SOME, "edits": SOME},
    {"dtype": "bfloat16", "taps": SOME},
    {"quantize": "int8"},
    {"quantize": "int4", "taps": SOME, "edits": SOME},
    {"quantize": "int4-all", "taps": WITHOUT_HEADS},
    *({"opset": opset} for opset in (18, 21, 24)),
]


def shapes(plan: Plan) -> dict[str, list[str | int]]:
    """Every input and output of the graph that would be written, and its axes."""
    runner = TorchRunner(random_model(CONFIG), None, Source("random"))
    model = on_cpu(runner.model, DTYPES[plan.dtype])
    if plan.quantize:
        pack(model, plan.quantize)
    program = trace(model, plan)
    describe(program, runner, plan, model, runner.model)
    graph = program.model.graph
    return {
        value.name: [axis if isinstance(axis, int) else axis.value for axis in value.shape]
        for value in (*graph.inputs, *graph.outputs)
    }


def wanted(plan: Plan) -> dict[str, list[str | int]]:
    tokens = ["batch_size", "sequence_length"]
    fused = plan.profile == "fused"
    out = {
        "input_ids": tokens,
        "attention_mask": ["batch_size", "total_sequence_length"],
        "position_ids": tokens,
        # the caller may name the columns that get logits
        "logits": [
            "batch_size",
            "logits_length" if fused else "sequence_length",
            CONFIG.vocab_size,
        ],
    }
    if fused:
        out["logits_positions"] = ["logits_positions.batch", "logits_positions.pos"]
    present = "present_length" if fused else "total_sequence_length"
    for layer, part in itertools.product(range(CONFIG.n_layer), ("key", "value")):
        for name, length in (("past_key_values", "past_sequence_length"), ("present", present)):
            out[f"{name}.{layer}.{part}"] = ["batch_size", 2, length, 16]
    for tap in plan.taps:
        out[tap] = [SIZES.get(axis, NAMES.get(axis, 1)) for axis in axes_of(tap)]
    for tap, part in itertools.product(plan.edits, ("keep", "add")):
        out[f"{tap}.{part}"] = [f"{tap}.{part}.{axis}" for axis in axes_of(tap)]
    return out


@pytest.mark.slow
@pytest.mark.parametrize(
    "options", PLANS, ids=lambda options: "-".join(map(str, options)) or "plain"
)
@pytest.mark.parametrize("profile", ["portable", "fused"])
def test_every_axis_of_every_input_and_output_has_its_name(profile, options):
    plan = Plan(profile=profile, **options)
    assert shapes(plan) == wanted(plan)


@pytest.mark.parametrize(
    "warn",
    [
        lambda: warnings.warn("The dynamic axes will not be renamed.", stacklevel=1),
        lambda: logging.getLogger("torch.onnx").warning("The dynamic axes will not be renamed."),
        lambda: logging.getLogger("onnxscript.optimizer").warning("will not be renamed"),
        lambda: warnings.warn(
            "# The axis name: logits_batch will not be used, since it shares the same shape "
            "constraints with another axis: batch_size.",
            stacklevel=1,
        ),
    ],
    ids=["warning", "log", "another library", "two names for one axis"],
)
def test_a_warning_that_is_not_expected_fails_the_export(warn):
    message = r"torch warned .*(not be renamed|logits_batch)"
    with pytest.raises(ExportError, match=message), expected_warnings_only():
        warn()


def test_expected_warnings_are_hidden(recwarn, capfd):
    with expected_warnings_only():
        logging.getLogger("torch.onnx").warning("torchvision is not installed. Skipping nms")
        for axis in ("batch_size", "sequence_length"):
            warnings.warn(
                f"# The axis name: {axis} will not be used, since it shares the same shape "
                f"constraints with another axis: {axis}.",
                stacklevel=1,
            )
    assert not recwarn.list
    assert capfd.readouterr() == ("", "")


def test_an_error_while_tracing_is_not_replaced_by_a_warning():
    def fail():
        warnings.warn("about to fail", stacklevel=1)
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError), expected_warnings_only():
        fail()


def test_loggers_are_as_before():
    log = logging.getLogger("torch")
    before = log.handlers, log.propagate, torch.tensor(1)
    with expected_warnings_only():
        pass
    assert (log.handlers, log.propagate) == before[:2]


@pytest.mark.parametrize("stop", [KeyboardInterrupt(), SystemExit(143)], ids=repr)
@pytest.mark.parametrize("wrapped", ["cause", "context"])
def test_a_signal_that_torch_makes_an_error_of_still_stops_the_export(stop, wrapped, monkeypatch):
    def fail(*_):
        try:
            raise stop
        except BaseException as error:
            if wrapped == "cause":
                raise RuntimeError("cannot be traced") from error
            raise RuntimeError("cannot be traced")  # noqa: B904

    monkeypatch.setattr("exporters.tracing.trace._traced", fail)
    with pytest.raises(type(stop)):
        trace(random_model(CONFIG), Plan())
