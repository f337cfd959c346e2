"""Other clients give the inputs that they know, and nothing else."""

import io
from dataclasses import replace

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from rich.console import Console

from exporters import export_onnx, inspect_onnx, open_onnx
from exporters.file.names import edit_names, past_names
from gpt2kit import Edit, GPT2Config, TorchRunner
from gpt2kit.errors import ExportError, InputError
from gpt2kit.generation import steps
from gpt2kit.runner import Source
from gpt2kit.sampling import Sampler
from tests.conftest import CONFIG, byte_tokenizer, close, random_ids, random_model

KNOWN = {"input_ids", "attention_mask", "position_ids", *past_names(CONFIG.n_layer)}
EDITED = ("blocks.1.z", "blocks.1.resid_post")


@pytest.fixture(scope="module", params=["portable", "fused"])
def required(request, torch_runner, tmp_path_factory):
    """A file whose edits are required inputs."""
    path = tmp_path_factory.mktemp("onnx") / "required.onnx"
    report = export_onnx(
        torch_runner, path, profile=request.param, edits=EDITED, taps="blocks.*.resid_post",
        edits_required=True,
    )  # fmt: skip
    assert report.passed
    return open_onnx(path, device="cpu")


@pytest.mark.parametrize("profile", ["portable", "fused"])
@pytest.mark.parametrize("some", [(), "*"], ids=["plain", "taps and edits"])
def test_only_known_inputs_are_required(file_of, profile, some):
    session = ort.InferenceSession(file_of(profile, taps=some, edits=some))
    assert {value.name for value in session.get_inputs()} == KNOWN


@pytest.mark.parametrize("width", [1, 7, CONFIG.n_positions])
def test_without_positions_every_column_gets_logits(fused_runner, torch_runner, width):
    ids = random_ids(2, width)
    session = fused_runner.carrying(fused_runner.taps)
    empty = np.zeros((2, CONFIG.n_head, 0, CONFIG.d_head), np.float32)
    given = {
        "input_ids": ids,
        "attention_mask": np.ones_like(ids),
        "position_ids": np.arange(width)[None].repeat(2, 0),
        **dict.fromkeys(past_names(CONFIG.n_layer), empty),
    }
    close(session.run(["logits"], given)[0], torch_runner.run(ids).logits)


def test_required_edits_are_inputs_without_a_default(required):
    graph = onnx.load(required.path).graph
    names = {name for tap in EDITED for name in edit_names(tap)}
    assert names <= {value.name for value in graph.input}
    assert not names & {value.name for value in graph.initializer}
    assert {value.name for value in required.session.get_inputs()} == KNOWN | names
    found = inspect_onnx(required.path)
    assert found.edits_required is True
    console = Console(width=120, file=io.StringIO())
    console.print(found.render())
    assert "edits: required inputs {tap}.keep and {tap}.add" in console.file.getvalue()


@pytest.mark.parametrize(
    "edits",
    [[], [Edit.zero("blocks.1.z", head=1)], [Edit.scale("blocks.1.resid_post", 3.0, pos=2)]],
    ids=["none", "one", "another"],
)
def test_a_file_with_required_edits_computes_the_same(required, torch_runner, edits):
    ids = random_ids(1, 6)
    runs = [r.run(ids, edits=edits, taps="blocks.2.resid_post") for r in (required, torch_runner)]
    close(runs[0].logits, runs[1].logits)
    close(runs[0].taps["blocks.2.resid_post"], runs[1].taps["blocks.2.resid_post"])
    tokens = [
        list(steps(r, ids, max_new_tokens=6, sampler=Sampler(greedy=True), edits=edits))
        for r in (required, torch_runner)
    ]
    assert tokens[0] == tokens[1]


def test_a_decode_step_of_required_edits_goes_back_to_no_edit(required, torch_runner):
    outputs = []
    for r in (required, torch_runner):
        cache = r.run(random_ids(1, 3), cache=r.new_cache()).cache
        for edits in ([], [Edit.zero("blocks.1.z")], []):
            run = r.run([5], cache=cache, edits=edits, last_only=True)
            cache = run.cache
            outputs.append(run.logits)
    for got, want in zip(outputs[:3], outputs[3:], strict=True):
        close(got, want)


def test_required_edits_must_be_named(torch_runner, tmp_path):
    with pytest.raises(ExportError, match=r"edits are required, but none is named; .* --edits"):
        export_onnx(torch_runner, tmp_path / "x.onnx", edits_required=True)
    with pytest.raises(InputError, match="edits_required = 1 must be True or False"):
        export_onnx(torch_runner, tmp_path / "x.onnx", edits="embed", edits_required=1)
    assert not list(tmp_path.iterdir())


SIZES = GPT2Config(
    vocab_size=261, n_positions=20, n_embd=32, n_layer=1, n_head=2, bos_token_id=0, eos_token_id=0
)


@pytest.mark.parametrize(
    ("options", "sizes", "message"),
    [
        ({"profile": "fused"}, {"n_head": 8}, "heads whose width is a multiple of 8, not 4"),
        ({"profile": "fused"}, {"n_embd": 60, "n_head": 5}, "multiple of 8, not 12"),
        *(
            ({"quantize": kind}, {"n_inner": n_inner}, f"n_inner = {n_inner} cannot be quantised")
            for kind in ("int8", "int4", "int4-all")
            for n_inner in (40, 8, 1)
        ),
        ({"quantize": "int8"}, {"n_embd": 40}, "n_embd = 40 cannot be quantised"),
    ],
)
def test_sizes_that_a_kernel_refuses_are_found_before_tracing(
    options, sizes, message, tmp_path, monkeypatch
):
    monkeypatch.setattr("exporters.export.trace", lambda *_: pytest.fail("traced"))
    runner = TorchRunner(random_model(replace(SIZES, **sizes)), byte_tokenizer(), Source("random"))
    with pytest.raises(ExportError, match=message):
        export_onnx(runner, tmp_path / "x.onnx", **options)
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
@pytest.mark.parametrize(
    ("options", "sizes"),
    [
        ({"profile": "fused"}, {"n_head": 4}),
        ({"quantize": "int8"}, {"n_inner": 48}),
        ({"profile": "fused", "quantize": "int4"}, {"n_inner": 16}),
    ],
)
def test_sizes_that_a_kernel_takes_are_exported(options, sizes, tmp_path):
    runner = TorchRunner(random_model(replace(SIZES, **sizes)), byte_tokenizer(), Source("random"))
    assert export_onnx(runner, tmp_path / "x.onnx", **options).passed
