"""Malformed values at every door: one error of ours, of one line, and in no time."""

import io
import json
import time

import numpy as np
import pytest
import torch

import gpt2kit
from exporters.file.metadata import FileMetadata
from exporters.file.names import as_path
from gpt2kit import Edit, GPT2Config
from gpt2kit.checks import as_int64, check_integer, check_top_k, short
from gpt2kit.errors import ConfigError, EditError, EngineError, GPT2KitError, InputError
from gpt2kit.json_files import parse_json
from gpt2kit.torch_engine.weight_files import weight_files
from probes import LogitLens, TunedLens
from tests.conftest import CONFIG
from tests.exporters.file.test_metadata import PATH, WHOLE

HUGE = "99999999999999999999"
NUMBERS = ("7", "-1", "0", "0.5", "1e30", "1e400", "-1e400", "NaN", "-Infinity", "9" * 400)
OTHERS = ("null", "true", '""', '"x"', r'"\u0000"', r'"\ud800"', "[]", "[null]", "{}", '{"a": 1}')
DEEP = ("[" * 900 + "]" * 900, "[" * 100_000, '{"a":' * 100_000)
VALUES = [*NUMBERS, *OTHERS, *DEEP]


def assert_one_line(error: BaseException) -> None:
    assert isinstance(error, GPT2KitError)
    assert error.exit_code == 2
    assert len(str(error).splitlines()) == 1


def refused(call, kind=GPT2KitError) -> str:
    """The message of the error that a call raises, in under 5 seconds."""
    start = time.perf_counter()
    with pytest.raises(kind) as caught:
        call()
    assert time.perf_counter() - start < 5
    assert_one_line(caught.value)
    return str(caught.value)


def with_value(entries: dict, key: str, value: str) -> str:
    """A JSON object in which a key has a value that is given as text."""
    rest = json.dumps({name: entry for name, entry in entries.items() if name != key})
    return f'{rest[:-1]}{", " * (len(rest) > 2)}"{key}": {value}}}'


NUMERIC = ["vocab_size", "n_positions", "n_embd", "n_layer", "n_head", "n_inner"]


@pytest.mark.parametrize("value", VALUES, ids=lambda text: text[:9])
def test_every_value_of_every_key_of_a_config_is_read_or_one_line(tmp_path, value):
    file = tmp_path / "config.json"
    for key in [*CONFIG.to_hf(), "n_inner", "pruned_heads", "torch_dtype", "_x"]:
        file.write_text(with_value(CONFIG.to_hf(), key, value))
        try:
            config = GPT2Config.from_file(file)
        except ConfigError as error:
            assert_one_line(error)
        else:
            assert all(0 < (getattr(config, name) or 1) < 2**31 for name in NUMERIC)
            assert 0 < config.layer_norm_epsilon < 2**31


@pytest.mark.parametrize("value", [10**30, 2**31, 1e30, float("inf"), float("nan"), True, "7", []])
@pytest.mark.parametrize("name", [*NUMERIC, "layer_norm_epsilon"])
def test_a_size_is_a_positive_integer_that_torch_can_compute_with(name, value):
    message = refused(lambda: GPT2Config(**{name: value}), ConfigError)
    assert message.startswith(f"config: {name} = ")


@pytest.mark.parametrize("text", ["", "[", "7", '"x"', "[]", "\x00", '{"a": 1,}', *DEEP])
def test_text_that_is_not_the_json_needed_is_one_line(tmp_path, text):
    index = tmp_path / "model.safetensors.index.json"
    index.write_text(text)
    assert "not a readable index" in refused(lambda: weight_files(tmp_path))
    refused(lambda: LogitLens.from_json(text), InputError)
    (tmp_path / "config.json").write_text(text)
    refused(lambda: TunedLens.load(tmp_path))


def test_deep_json_is_a_value_error():
    for text in DEEP[1:]:
        with pytest.raises(ValueError, match="nested too deeply"):
            parse_json(text)


@pytest.mark.parametrize("key", sorted(WHOLE.to_metadata()))
def test_every_value_of_every_key_of_the_metadata_is_read_or_one_line(key):
    for value in VALUES:
        try:
            found = FileMetadata.from_metadata(WHOLE.to_metadata() | {key: value}, PATH)
        except (EngineError, ConfigError) as error:
            assert_one_line(error)
        else:
            assert isinstance(found.weights, dict)
            assert all(isinstance(name, str) for name in (*found.weights.values(), *found.taps))


def header(shape: str, kind: str = "'<f4'") -> bytes:
    text = f"{{'descr': {kind}, 'fortran_order': False, 'shape': {shape}, }}".encode()
    return b"\x93NUMPY\x01\x00" + (len(text) + 1).to_bytes(2, "little") + text + b"\n"


def archive() -> bytes:
    out = io.BytesIO()
    np.savez_compressed(out, a=np.zeros(1000))
    return out.getvalue()


ARRAYS = {
    "a size of 10^12": header("(1000000000000,)"),
    "a size of 10^22": header(f"({HUGE},)"),
    "a negative size": header("(-1,)"),
    "a size that is a float": header("(1e30,)"),
    "70 axes": header(f"({'1,' * 70})"),
    "deep": header("(" * 300 + ")" * 300),
    "text": header("(1,)", "'<U9'") + bytes(36),
    "objects": header("(1,)", "'|O'"),
    "records": header("(1,)", "[('a', '<f4')]") + bytes(4),
    "complex": header("(1,)", "'<c8'") + bytes(8),
    "dates": header("(1,)", "'<M8[s]'") + bytes(8),
    "cut off": header("(9,)") + bytes(9),
    "no header": b"\x93NUMPY",
    "a later version": b"\x93NUMPY\x09\x00\x10\x00" + b" " * 16,
    "a header of 4 GB": b"\x93NUMPY\x02\x00\xff\xff\xff\xff{",
    "empty": b"",
    "an archive": archive(),
}


@pytest.mark.parametrize("name", ARRAYS)
def test_a_file_that_is_no_array_is_one_line(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "x.npy").write_bytes(ARRAYS[name])
    assert "x.npy" in refused(lambda: Edit.parse("embed += x.npy"), EditError)


def test_what_is_not_a_file_is_one_line(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "folder.npy").mkdir()
    for name in ("folder.npy", "no.npy", "a\0b.npy", "x" * 5000 + ".npy"):
        refused(lambda name=name: Edit.parse(f"embed += {name}"))


@pytest.mark.parametrize("kind", ["f2", "f4", "f8", "longdouble", "i1", "u8", "?"])
def test_arrays_of_every_kind_of_number_are_read(torch_runner, tmp_path, monkeypatch, kind):
    monkeypatch.chdir(tmp_path)
    np.save("x.npy", np.ones(CONFIG.n_embd, kind))
    read = torch_runner.run([1, 2], edits=[Edit.parse("blocks.1.mlp_out += x.npy")]).logits
    want = torch_runner.run([1, 2], edits=[Edit.steer("blocks.1.mlp_out", np.ones(CONFIG.n_embd))])
    np.testing.assert_allclose(read, want.logits, atol=1e-5)


WHOLE_RANGES = [f":{HUGE}", f"-{HUGE}:", f"0:{HUGE}", f"-{HUGE}:{HUGE}"]
EMPTY_RANGES = [f"{HUGE}:", f":-{HUGE}"]


@pytest.mark.parametrize("axis", ["batch", "pos", "head", "d_head"])
def test_ranges_may_go_beyond_any_axis(torch_runner, axis):
    def logits(where: str) -> np.ndarray:
        edit = Edit.parse(f"blocks.1.z{where} = 0")
        return torch_runner.run([[1, 2, 3]], edits=[edit]).logits

    whole, plain = logits(""), torch_runner.run([[1, 2, 3]]).logits
    for where in WHOLE_RANGES:
        np.testing.assert_array_equal(logits(f"[{axis}={where}]"), whole)
    for where in EMPTY_RANGES:
        np.testing.assert_array_equal(logits(f"[{axis}={where}]"), plain)
    np.testing.assert_array_equal(logits(f"[{axis}=::{HUGE}]"), logits(f"[{axis}=0]"))
    for where in (HUGE, f"-{HUGE}", f"[{HUGE}]", str(2**64 - 1), "9" * 400, "9" * 5000):
        refused(lambda where=where: logits(f"[{axis}={where}]"), EditError)


LONG_TEXTS = [
    "z" + " " * 50_000 + "x",
    "z[" + "=" * 50_000,
    "z[" + "[]" * 25_000 + "= ",
    "[" * 50_000 + "]" * 50_000,
    "z[pos=" + " " * 50_000 + "[] = 0",
    "z[" + "a" * 50_000 + "] = 0",
    "z = " + "9" * 50_000 + "x",
    "z = " + "1e" + "9" * 50_000,
    "z = 1" + " " * 50_000 + "* x",
    "*" * 50_000 + " = 0",
    "?" * 50_000 + " = 0",
]


@pytest.mark.parametrize("text", LONG_TEXTS, ids=lambda text: text[:9])
def test_no_text_takes_long_to_read(torch_runner, text):
    start = time.perf_counter()
    with pytest.raises(InputError):
        torch_runner.run([1], edits=[Edit.parse(text)])
    assert time.perf_counter() - start < 5


DEVICES = ["mps", "mps:0", "meta", "vulkan", "xpu:99", "cpu:-2", "", "a\nb"]


@pytest.mark.parametrize("device", DEVICES)
def test_a_device_that_cannot_compute_here_is_one_line(device):
    assert refused(lambda: gpt2kit.load("bundled", device=device)).startswith("device ")


def test_numbers_too_large_for_an_array_are_out_of_range(torch_runner):
    values = np.array([1, 2**63 - 1, 2**63, 2**64 - 1], np.uint64)
    assert as_int64(values).tolist() == [1, *[2**63 - 1] * 3]
    for ids in ([2**64 - 1], [2**63], [10**20], np.array([2**64 - 250], np.uint64)):
        refused(lambda ids=ids: torch_runner.run(ids), InputError)
    for number in (10**20, -(10**20), 10**5000):
        refused(lambda number=number: check_integer("n", number, 0, 5), InputError)
        refused(lambda number=number: check_top_k(number, 5), InputError)
    assert short(10**5000) == "<a int too large to show>"


def test_a_path_with_a_nul_is_one_line():
    assert "NUL" in refused(lambda: as_path("a\0b.onnx"), InputError)


@pytest.mark.parametrize("key", ["a\nb", "\r", "a\x0bb\x85c\u2028d"])
def test_a_name_with_line_breaks_stays_on_one_line(key):
    refused(lambda: GPT2Config.from_hf({"model_type": "gpt2", key: 7}), ConfigError)


@pytest.mark.parametrize("layers", ["0", "-1", "1000000000000", HUGE, "1e400", "NaN", '"x"', "[]"])
def test_a_published_lens_of_a_wrong_size_is_one_line(tmp_path, layers):
    torch.save({"0.weight": torch.eye(4), "0.bias": torch.zeros(4)}, tmp_path / "params.pt")
    config = f'{{"num_hidden_layers": {layers}, "d_model": 4}}'
    (tmp_path / "config.json").write_text(config)
    assert "not a tuned lens" in refused(lambda: TunedLens.load(tmp_path))
