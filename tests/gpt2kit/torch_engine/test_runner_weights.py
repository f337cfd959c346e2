"""`Runner.weight`: the weights of the checkpoint, from the module and from every kind of file."""

import json
import subprocess
import sys
from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np
import onnx
import onnx_ir
import pytest
import torch

from exporters import export_onnx, open_onnx
from exporters.file.stored_weights import StoredWeights
from exporters.tracing.description import describe
from exporters.tracing.plan import Plan
from exporters.tracing.quantize import pack, unpack
from exporters.tracing.trace import trace
from gpt2kit import GPT2, TorchRunner
from gpt2kit.errors import EngineError, InputError
from gpt2kit.runner import Source
from gpt2kit.torch_engine.dtypes import on_cpu
from gpt2kit.weight_names import weight_shapes
from tests.conftest import CONFIG, byte_tokenizer, close, random_ids, random_model

TIED = replace(CONFIG, n_embd=48, n_layer=2)
CONFIGS = {"tied": TIED, "untied": replace(TIED, tie_word_embeddings=False, n_inner=80)}
# Every kind of edit, beside a layer that has none: tracing each takes a tenth of a second.
EDITED = ["*embed", "blocks.0.resid_pre", "blocks.1.*", "ln_f*"]
KINDS = {
    "plain": {},
    "fused": {"profile": "fused"},
    "every tap": {"taps": "*"},
    "every edit": {"taps": "*", "edits": EDITED},
    "every edit, fused": {"taps": "*", "edits": EDITED, "profile": "fused"},
    "opset 18": {"opset": 18},
    "float16": {"dtype": "float16", "taps": "*"},
    "float16, fused": {"dtype": "float16", "profile": "fused", "taps": "*.head_out"},
    "outside": {"external_data": True},
    "int8": {"quantize": "int8"},
    "int8, fused": {"quantize": "int8", "profile": "fused"},
    "int4": {"quantize": "int4"},
    "int4-all": {"quantize": "int4-all", "profile": "fused"},
}
# `test_both_engines_give_the_same` reads the tied weights of files with every edit.
ELSEWHERE = [("every edit", "tied"), ("every edit, fused", "tied")]


def runner_of(config, **options) -> TorchRunner:
    return TorchRunner(random_model(config, **options), byte_tokenizer(), Source("random"))


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """exported(kind, config) -> runner and file, each made once."""

    @cache
    def make(kind: str, config: str) -> tuple[TorchRunner, Path]:
        runner, path = runner_of(CONFIGS[config]), tmp_path_factory.mktemp("kind") / "out.onnx"
        export_onnx(runner, path, **KINDS[kind])
        return runner, path

    return make


def weights_of(model: GPT2) -> dict[str, np.ndarray]:
    """Every weight that a runner gives, by the state dict."""
    found = {name: x.numpy() for name, x in model.state_dict().items()}
    return {"lm_head.weight": found["wte.weight"], **found}


def assert_same(runner, want: dict[str, np.ndarray]) -> None:
    for name, x in want.items():
        got = runner.weight(name)
        assert got.dtype == x.dtype, name
        np.testing.assert_array_equal(got, x, err_msg=name)
        with pytest.raises(ValueError, match="read-only"):
            got[...] = 0


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
def test_the_names_and_shapes_are_those_of_the_module(config):
    want = {name: x.shape for name, x in weights_of(random_model(config)).items()}
    assert weight_shapes(config) == want


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16", "float64"])
def test_torch_gives_the_module(config, dtype):
    runner = runner_of(config, dtype=getattr(torch, dtype))
    wide = torch.float64 if dtype == "float64" else torch.float32
    assert_same(runner, weights_of(on_cpu(runner.model, wide)))


@pytest.mark.parametrize(
    ("kind", "config"),
    [(kind, config) for kind in KINDS for config in CONFIGS if (kind, config) not in ELSEWHERE],
)
def test_a_file_gives_what_was_exported(kind, config, exported):
    options, (runner, path) = KINDS[kind], exported(kind, config)
    model = on_cpu(runner.model, torch.float32)
    if quantize := options.get("quantize"):
        model = unpack(pack(model, quantize))
    if options.get("dtype") == "float16":
        model = on_cpu(on_cpu(model, torch.float16), torch.float32)
    assert_same(open_onnx(path, device="cpu"), weights_of(model))


@pytest.mark.parametrize("profile", ["portable", "fused"])
def test_bfloat16_is_read_as_float32(profile, tmp_path):
    runner = runner_of(TIED)
    model = on_cpu(runner.model, torch.bfloat16)
    plan = Plan(("blocks.0.head_out",), ("blocks.1.head_out",), profile, "bfloat16")
    program = trace(model, plan)
    describe(program, runner, plan, model, model)
    onnx_ir.save(program.model, tmp_path / "out.onnx")
    found = StoredWeights(tmp_path / "out.onnx")
    for name, x in weights_of(on_cpu(model, torch.float32)).items():
        np.testing.assert_array_equal(found.read(name), x, err_msg=name)


def test_both_engines_give_the_same(runner, torch_runner):
    assert_same(runner, weights_of(torch_runner.model))


@pytest.mark.parametrize("quantize", [None, "int8", "int4-all"])
def test_equal_weights_that_share_one_initializer(quantize, tmp_path):
    """As a new model has them: gains of 1, biases of 0, and here two layers alike."""
    model = GPT2(TIED).eval().requires_grad_(False)
    model.h[1].load_state_dict(model.h[0].state_dict())
    export_onnx(TorchRunner(model), tmp_path / "out.onnx", quantize=quantize)
    onnx_runner = open_onnx(tmp_path / "out.onnx", device="cpu")
    shared = onnx_runner.metadata.weights
    assert shared["h.1.ln_2.weight"]
    want = unpack(pack(on_cpu(model, torch.float32), quantize)) if quantize else model
    assert_same(onnx_runner, weights_of(want))
    if not quantize:  # a readout reads a final norm that shares its weights
        assert shared["ln_f.bias"]
        resid = np.random.default_rng(0).normal(size=(3, TIED.n_embd)).astype(np.float32)
        close(onnx_runner.unembed(resid), TorchRunner(model).unembed(resid))


def test_an_unknown_name_is_refused_with_the_nearest(runner):
    for name, near in (
        ("h.1.attn.c_atn.weight", "h.1.attn.c_attn.weight"),
        ("transformer.wte.weight", "wte.weight"),
        ("h.3.ln_1.bias", "h.2.ln_1.bias"),
        ("lm_head", "lm_head.weight"),
        ("", "wte.weight"),
    ):
        with pytest.raises(InputError, match=r"^unknown weight .*; did you mean '.*'\?$") as caught:
            runner.weight(name)
        assert name in str(caught.value)
        assert near in str(caught.value)


def test_a_file_whose_weights_have_other_names_is_refused(onnx_runner, tmp_path):
    model = onnx.load(onnx_runner.path)
    for entry in model.metadata_props:
        if entry.key == "gpt2kit.weights":
            entry.value = json.dumps({"wpe.weight": "nowhere", "ln_f.bias": "nowhere"})
    onnx.save(model, tmp_path / "odd.onnx")
    odd = open_onnx(tmp_path / "odd.onnx", device="cpu")
    with pytest.raises(EngineError, match=r"odd\.onnx: holds no wpe\.weight; make it again with"):
        odd.weight("wpe.weight")
    with pytest.raises(EngineError, match=r"odd\.onnx: holds no ln_f\.bias; make it again with"):
        odd.unembed(np.zeros((1, CONFIG.n_embd), np.float32))


SCRIPT = """
import sys
from exporters import open_onnx
runner = open_onnx({path!r}, device="cpu")
assert runner.weight("h.1.mlp.c_fc.weight").shape == (48, 192)
assert "torch" not in sys.modules
"""


def test_a_quantised_weight_needs_no_torch(exported):
    _, path = exported("int4", "tied")
    script = SCRIPT.format(path=str(path))
    root = Path(__file__).parents[3]
    subprocess.run([sys.executable, "-c", script], check=True, cwd=root)


def test_large_weights_stay_on_disk(tmp_path):
    """What a float32 file gives is the file itself, mapped; nothing is copied or kept."""
    config = replace(TIED, vocab_size=2000)
    runner = TorchRunner(random_model(config))
    export_onnx(runner, tmp_path / "out.onnx")
    weight = open_onnx(tmp_path / "out.onnx", device="cpu").weight("wte.weight")
    assert not weight.flags.owndata
    base = weight
    while isinstance(base.base, np.ndarray):
        base = base.base
    assert not base.flags.owndata
    ids = random_ids(1, 4)
    close(weight[ids], runner.run(ids, taps="embed").taps["embed"])
