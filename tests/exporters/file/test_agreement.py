"""Metadata that contradicts the graph, or the checkpoint, is one line; nothing believes it."""

import json
import time
from dataclasses import fields, replace
from pathlib import Path

import numpy as np
import onnx
import pytest

from exporters import export_onnx, inspect_onnx, open_onnx, verify
from exporters.file.metadata import FileMetadata
from gpt2kit import GPT2Config, TorchRunner
from gpt2kit.errors import CheckpointError, EngineError, GPT2KitError
from gpt2kit.runner import Source
from tests.conftest import CONFIG, byte_tokenizer, random_model, write_checkpoint

WIDE = replace(CONFIG, n_embd=48, n_layer=1, n_positions=20)  # a width that can be quantised


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("agreement") / "model"
    write_checkpoint(folder, WIDE)
    (folder / "tokenizer.json").write_text(byte_tokenizer().to_json())
    return folder


@pytest.fixture(scope="module")
def files(tmp_path_factory) -> dict[str, Path]:
    runner = TorchRunner(random_model(WIDE), byte_tokenizer(), Source("wide"))
    folder = tmp_path_factory.mktemp("agreement")
    options = {
        "plain": {},
        "fused": {"profile": "fused", "taps": "blocks.0.z", "edits": "embed"},
        "int8": {"quantize": "int8"},
    }
    for name, given in options.items():
        export_onnx(runner, folder / f"{name}.onnx", **given)
    return {name: folder / f"{name}.onnx" for name in options}


def changed(file: Path, folder: Path, key: str, text: str) -> Path:
    """A copy of a file with another value of a key, or of a key of the config."""
    model, target = onnx.load(file), folder / file.name
    values = {entry.key: entry.value for entry in model.metadata_props}
    if key.startswith("config."):
        config = json.loads(values["gpt2kit.config"]) | {key[7:]: json.loads(text)}
        config["n_ctx"] = config["n_positions"]
        key, text = "config", json.dumps(config)
    onnx.helper.set_model_props(model, values | {f"gpt2kit.{key}": text})
    onnx.save(model, target)
    return target


# (file, key, value, what the line says)
AT_OPEN = [
    ("plain", "config.vocab_size", "300", "vocab_size = 300, but its graph has 261"),
    ("plain", "config.vocab_size", "2000000000", "vocab_size = 20*, but its graph has 261"),
    (
        "plain",
        "config.n_positions",
        "21",
        r"wpe\.weight \(21, 48\) as float32, but its graph",
    ),
    ("plain", "config.n_positions", "2000000000", r"wpe\.weight"),
    ("plain", "config.n_embd", "96", "n_embd = 96, but its graph has 48"),
    ("plain", "config.n_layer", "2", "n_layer = 2, but its graph has 1"),
    ("plain", "config.n_layer", "1000000", "n_layer = 1000000, but its graph has 1"),
    ("fused", "config.n_layer", "2000000000", "n_layer = 20*, but its graph has 1"),
    ("plain", "config.n_head", "6", "n_head = 6, but its graph has 3"),
    ("plain", "config.n_inner", "100", r"h\.0\.mlp\.c_fc\.weight \(48, 100\)"),
    ("int8", "config.n_inner", "1000000000", r"h\.0\.mlp\.c_fc\.weight"),
    ("plain", "config.layer_norm_epsilon", "0.001", "layer_norm_epsilon = 0.001.*, but its graph"),
    ("fused", "config.layer_norm_epsilon", "0.001", "layer_norm_epsilon = 0.001.*, but its graph"),
    ("plain", "config.tie_word_embeddings", "false", "tie_word_embeddings = False, but its graph"),
    ("int8", "config.tie_word_embeddings", "false", "tie_word_embeddings = False, but its graph"),
    ("plain", "dtype", "float16", "dtype = 'float16', but its graph has 'float32'"),
    ("plain", "dtype", "float8", "dtype = 'float8', but its graph has 'float32'"),
    ("plain", "profile", "fused", "profile = 'fused', but its graph has 'portable'"),
    ("fused", "profile", "portable", "profile = 'portable', but its graph has 'fused'"),
    ("plain", "profile", "evil", "profile = 'evil', but its graph has 'portable'"),
    ("plain", "opset", "18", "opset = 18, but its graph has 23"),
    ("plain", "taps", '["embed"]', "that it carries the taps embed, but its graph does not"),
    ("fused", "taps", "[]", r"that it carries no taps blocks\.0\.z, but its graph does"),
    ("plain", "taps", '["no tap"]', "the taps no tap, but its graph does not"),
    ("plain", "edits", '["embed"]', r"the edits embed\.add, but its graph does not"),
    ("fused", "edits", "[]", r"no edits embed\.add, but its graph does"),
    ("plain", "quantize", "int8", "quantize = 'int8', but its graph is not quantised"),
    ("int8", "quantize", "", "quantize = None, but its graph is quantised"),
    ("int8", "quantize", "int4", r"h\.0\.attn\.c_attn\.weight \(48, 144\) as int4, but its graph"),
    ("int8", "quantize", "int3", "quantize = 'int3', but its graph is quantised"),
    ("plain", "weights", '{"lm_head.weight": "wte.weight"}', "tie_word_embeddings = True, but"),
]
# Only the checkpoint can tell.
AT_VERIFY = [
    ("config.activation_function", '"relu"', "activation_function = 'relu', but .* 'gelu_new'"),
    ("config.scale_attn_weights", "false", "scale_attn_weights = False, but .* True"),
    ("config.scale_attn_by_inverse_layer_idx", "true", "scale_attn_by_inverse_layer_idx = True"),
    ("config.reorder_and_upcast_attn", "true", "reorder_and_upcast_attn = True, but .* False"),
    ("weights_sha256", "ab" * 32, "was made from other weights"),
    ("weights", '{"wte.weight": "nowhere"}', r"holds no wte\.weight"),
    ("weights", '{"h.0.ln_1.weight": "h.0.ln_2.weight"}', r"h\.0\.ln_1\.weight .* other values"),
]
# No graph shows the first three; the others have tests of their own.
ELSEWHERE = {"version", "model", "revision", "config", "data", "parity", "parity_sha256"}


def test_every_field_has_a_case():
    keys = {case[1] for case in AT_OPEN} | {case[0] for case in AT_VERIFY}
    assert {key for key in keys if "." not in key} | ELSEWHERE == {
        field.name for field in fields(FileMetadata)
    }
    of_config = {key.removeprefix("config.") for key in keys if "." in key}
    known = {field.name for field in fields(GPT2Config) if "token" not in field.name}
    assert of_config == known


@pytest.mark.parametrize(("file", "key", "text", "message"), AT_OPEN)
def test_metadata_that_contradicts_the_graph_is_one_line(
    files, checkpoint, tmp_path, file, key, text, message
):
    path, start = changed(files[file], tmp_path, key, text), time.monotonic()
    for read in (open_onnx, inspect_onnx, lambda path: verify(path, model=str(checkpoint))):
        with pytest.raises(EngineError, match=message) as caught:
            read(path)
        assert str(caught.value).startswith(f"{path}: its metadata says ")
        assert str(caught.value).endswith("; export it again")
        assert "\n" not in str(caught.value)
    assert time.monotonic() - start < 5


@pytest.mark.parametrize(("key", "text", "message"), AT_VERIFY)
def test_metadata_that_contradicts_the_checkpoint_is_one_line(
    files, checkpoint, tmp_path, key, text, message
):
    path = changed(files["plain"], tmp_path, key, text)
    with pytest.raises((EngineError, CheckpointError), match=message) as caught:
        verify(path, model=str(checkpoint))
    assert str(caught.value).startswith(f"{path}: ")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("file", ["plain", "fused", "int8"])
def test_a_file_as_written_agrees(files, checkpoint, file):
    assert verify(files[file], model=str(checkpoint)).passed


def test_a_graph_whose_weights_another_tool_has_renamed_still_runs(files, checkpoint, tmp_path):
    model = onnx.load(files["plain"])
    name = "h.0.mlp.c_fc.weight"
    next(x for x in model.graph.initializer if x.name == name).name = "renamed"
    for node in model.graph.node:
        node.input[:] = ["renamed" if x == name else x for x in node.input]
    onnx.save(model, tmp_path / "x.onnx")
    paths = tmp_path / "x.onnx", files["plain"]
    got, want = (open_onnx(path, device="cpu").run([1, 2]).logits for path in paths)
    np.testing.assert_array_equal(got, want)
    with pytest.raises(EngineError, match=r"holds no h\.0\.mlp\.c_fc\.weight"):
        verify(tmp_path / "x.onnx", model=str(checkpoint))


def test_one_changed_weight_is_noticed_whatever_the_tolerance(files, checkpoint, tmp_path):
    """A change far below the tolerance of outputs."""
    model = onnx.load(files["plain"])
    weight = next(x for x in model.graph.initializer if x.name == "h.0.mlp.c_proj.bias")
    values = onnx.numpy_helper.to_array(weight).copy()
    values[0] *= 1 + 1e-6
    weight.raw_data = values.tobytes()
    onnx.save(model, tmp_path / "x.onnx")
    with pytest.raises(GPT2KitError, match=r"h\.0\.mlp\.c_proj\.bias .* other values"):
        verify(tmp_path / "x.onnx", model=str(checkpoint))
