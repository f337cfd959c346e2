"""The metadata of a file: what is written is read back, and what cannot be read is one error."""

import json
from dataclasses import replace
from pathlib import Path

import onnx
import pytest

from exporters import inspect_onnx, open_onnx
from exporters.file.metadata import FORMAT, DataStamp, FileMetadata
from gpt2kit.errors import ConfigError, EngineError
from tests.conftest import CONFIG

PATH = Path("out.onnx")
WHOLE = FileMetadata(
    version="0.1.0",
    model="you/model",
    revision="0123",
    weights_sha256="ab" * 32,
    config=CONFIG,
    dtype="float32",
    profile="fused",
    opset=23,
    taps=("embed", "blocks.0.z"),
    edits=("blocks.1.z",),
    quantize="int8",
    weights={"h.1.ln_1.bias": "h.0.ln_1.bias"},
    data=DataStamp(4096, "ef" * 32),
    parity={
        "passed": True,
        "worst": ["logits", 1e-6, "prefill"],
        "tolerance": 1e-4,
        "cases": 7,
    },
    parity_sha256="cd" * 32,
)


@pytest.mark.parametrize(
    "change",
    [
        {},
        {"revision": None, "quantize": None},
        {"parity": None, "parity_sha256": None},
        {"data": None},
        {"taps": (), "edits": (), "weights": {}},
    ],
)
def test_metadata_is_read_back_as_it_was_written(change):
    metadata = replace(WHOLE, **change)
    entries = metadata.to_metadata()
    assert all(isinstance(text, str) for text in entries.values())
    assert entries["gpt2kit.format"] == str(FORMAT) == "1"
    assert FileMetadata.from_metadata(entries, PATH) == metadata


def test_keys_of_other_tools_are_ignored():
    entries = WHOLE.to_metadata() | {"author": "somebody", "gpt2kit.later": "?"}
    assert FileMetadata.from_metadata(entries, PATH) == WHOLE


def test_the_first_files_are_still_read():
    entries = WHOLE.to_metadata()
    for key in ("format", "quantize", "weights", "data", "parity_sha256"):
        del entries[f"gpt2kit.{key}"]
    found = FileMetadata.from_metadata(entries, PATH)
    assert found == replace(WHOLE, quantize=None, weights={}, data=None, parity_sha256=None)
    assert found.precision == "float32"


@pytest.mark.parametrize("key", sorted(WHOLE.to_metadata().keys() - {"gpt2kit.format"}))
def test_a_missing_key_is_one_error_unless_the_first_files_lack_it(key):
    entries = WHOLE.to_metadata()
    del entries[key]
    later = ("quantize", "weights", "data", "parity", "parity_sha256")
    if key in [f"gpt2kit.{name}" for name in later]:
        FileMetadata.from_metadata(entries, PATH)
        return
    with pytest.raises(EngineError, match=r"^out\.onnx: not made by gpt2kit; make it with `gpt2k"):
        FileMetadata.from_metadata(entries, PATH)


@pytest.mark.parametrize(
    ("key", "text"),
    [
        ("config", "{"),
        ("config", "[]"),
        ("taps", "null"),
        ("edits", '"blocks.0.z"'),
        ("opset", "twenty"),
        ("weights", "[1]"),
        ("weights", '{"wte.weight": ["wte.weight"]}'),
        ("config", "[" * 100_000),
        ("data", '{"length": 3}'),
        ("parity", "{}"),
        ("parity", '{"passed": 1, "worst": ["logits", 0, ""], "tolerance": 0, "cases": 0}'),
        ("parity", '{"passed": true, "worst": "abc", "tolerance": 0, "cases": 0}'),
        ("parity", '{"passed": true, "worst": 3, "tolerance": 0, "cases": 0}'),
        ("parity", "nonsense"),
        ("format", "one"),
        ("format", "٢"),
        ("format", "0"),
        ("format", ""),
    ],
)
def test_a_damaged_key_is_the_same_error(key, text):
    entries = WHOLE.to_metadata() | {f"gpt2kit.{key}": text}
    with pytest.raises(EngineError, match=r"^out\.onnx: not made by gpt2kit; make it with `gpt2k"):
        FileMetadata.from_metadata(entries, PATH)


def test_a_model_that_gpt2kit_does_not_compute_is_a_config_error():
    entries = WHOLE.to_metadata() | {"gpt2kit.config": json.dumps({"model_type": "llama"})}
    with pytest.raises(ConfigError, match="llama"):
        FileMetadata.from_metadata(entries, PATH)


def test_a_file_of_a_newer_format_says_what_to_do(onnx_runner, tmp_path):
    model = onnx.load(onnx_runner.path)
    for entry in model.metadata_props:
        if entry.key == "gpt2kit.format":
            entry.value = "7"
        if entry.key == "gpt2kit.taps":
            entry.value = "another way to write taps"
    onnx.save(model, tmp_path / "new.onnx")
    words = r"new\.onnx: made by a newer gpt2kit \(format 7, this one reads 1\); update gpt2kit$"
    with pytest.raises(EngineError, match=words):
        open_onnx(tmp_path / "new.onnx", device="cpu")
    with pytest.raises(EngineError, match=words):
        inspect_onnx(tmp_path / "new.onnx")
