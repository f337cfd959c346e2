"""External data: a mixed, short or changed pair of files is refused, and never computed with."""

import hashlib
import json
import os
import shutil
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest

from exporters import inspect_onnx, open_onnx, verify
from exporters.file import external
from exporters.file.metadata import DataStamp, data_stamp
from gpt2kit.errors import EngineError
from tests.conftest import close, write_checkpoint
from tests.exporters.file.conftest import SMALL, small_runner

POSIX = pytest.mark.skipif(sys.platform == "win32", reason="needs POSIX files")


@pytest.fixture
def copy(pair, tmp_path) -> Path:
    """A copy of the first folder's file, with its data beside it."""
    for name in ("m.onnx", "m.onnx_data"):
        shutil.copyfile(pair[0] / name, tmp_path / name)
    return tmp_path / "m.onnx"


def assert_refused(path: Path, message: str, readers=(open_onnx, inspect_onnx, verify)) -> None:
    for reader in readers:
        with pytest.raises(EngineError, match=message) as caught:
            reader(path)
        assert str(caught.value).startswith(f"{path}: ")
        assert "\n" not in str(caught.value)


def test_the_data_ends_with_its_digest_which_the_graph_repeats(pair):
    metadata = {entry.key: entry.value for entry in onnx.load(pair[0] / "m.onnx").metadata_props}
    data = (pair[0] / "m.onnx_data").read_bytes()
    assert json.loads(metadata["gpt2kit.data"]) == {
        "length": len(data),
        "sha256": data[-32:].hex(),
    }
    assert hashlib.sha256(data[:-32]).digest() == data[-32:]
    onnx.checker.check_model(os.fspath(pair[0] / "m.onnx"), full_check=True)


def test_data_of_other_weights_is_refused_whatever_it_shares(pair, copy):
    other = pair[1] / "m.onnx_data"
    assert other.stat().st_size == copy.with_name("m.onnx_data").stat().st_size
    shutil.copyfile(other, copy.with_name("m.onnx_data"))
    assert_refused(copy, r"its external data m\.onnx_data belongs to another export; copy both")


def test_a_graph_of_other_weights_is_refused(pair, copy):
    shutil.copyfile(pair[1] / "m.onnx", copy)
    assert_refused(copy, "belongs to another export")


DAMAGE = {
    "missing": (Path.unlink, r"m\.onnx_data is missing; keep that file beside it"),
    "empty": (lambda data: data.write_bytes(b""), r"not of the right length \(0 bytes\)"),
    "short": (lambda data: os.truncate(data, data.stat().st_size - 1), "not of the right length"),
    "long": (lambda data: os.truncate(data, data.stat().st_size + 1), "not of the right length"),
    "folder": (lambda data: (data.unlink(), data.mkdir()), r"m\.onnx_data is not a file"),
    "pipe": (lambda data: (data.unlink(), os.mkfifo(data)), r"m\.onnx_data is not a file"),
    "loop": (lambda data: (data.unlink(), data.symlink_to(data.name)), "is missing"),
    "link": (lambda data: (data.unlink(), data.symlink_to("/dev/zero")), "is not a file"),
}


@POSIX
@pytest.mark.parametrize("kind", DAMAGE)
@pytest.mark.parametrize("stamped", [True, False])
def test_data_that_is_not_what_the_graph_says_is_one_line(copy, kind, stamped):
    if not stamped:  # as older exports are; nothing says how long their data is
        change_metadata(copy, "gpt2kit.data", None)
    damage, message = DAMAGE[kind]
    damage(copy.with_name("m.onnx_data"))
    if not stamped and kind in ("short", "long"):
        return  # the seal's bytes are not the graph's
    assert_refused(copy, message)


def change_metadata(path: Path, key: str, text: str | None) -> None:
    model = onnx.load(path, load_external_data=False)
    kept = [entry for entry in model.metadata_props if entry.key != key]
    del model.metadata_props[:]
    model.metadata_props.extend(kept)
    if text is not None:
        model.metadata_props.add(key=key, value=text)
    path.write_bytes(model.SerializeToString())


@pytest.mark.parametrize(
    "text", ["{", "null", "{}", '{"length": 7}', '{"length": "7", "sha256": ""}']
)
def test_a_damaged_stamp_is_one_line(copy, text):
    change_metadata(copy, "gpt2kit.data", text)
    assert_refused(copy, r"the metadata gpt2kit\.data is damaged")


@pytest.mark.parametrize("key", ["offset", "length"])
def test_a_damaged_place_is_one_line(copy, key):
    model = onnx.load(copy, load_external_data=False)
    outside = [weight for weight in model.graph.initializer if weight.external_data]
    next(entry for entry in outside[0].external_data if entry.key == key).value = "many"
    copy.write_bytes(model.SerializeToString())
    assert_refused(copy, "a damaged ONNX file")


def test_an_older_file_without_a_stamp_still_opens(copy):
    change_metadata(copy, "gpt2kit.data", None)
    ids = [[1, 2, 3]]
    close(open_onnx(copy, device="cpu").run(ids).logits, small_runner().run(ids).logits)


def test_one_changed_bit_is_noticed_where_all_data_is_read(copy, tmp_path):
    data = copy.with_name("m.onnx_data")
    content = bytearray(data.read_bytes())
    content[len(content) // 2] ^= 1
    data.write_bytes(content)
    assert_refused(copy, "has changed since the export", readers=(inspect_onnx, verify))


def test_a_seal_is_the_digest_of_the_bytes_before_it(tmp_path):
    (tmp_path / "data").write_bytes(b"abc")
    stamp = external.seal(tmp_path / "data")
    # the digest of "abc" in FIPS 180-2
    digest = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    assert stamp == DataStamp(35, digest)
    assert (tmp_path / "data").read_bytes() == b"abc" + bytes.fromhex(digest)
    assert data_stamp({}, tmp_path) is None


# Files that change while they are open

RESID = np.zeros((1, SMALL.n_embd), np.float32)
RUNS = {
    "run": lambda runner: runner.run([1, 2]).logits,
    "readout": lambda runner: runner.readout(RESID).top_ids,
    "unembed": lambda runner: runner.unembed(RESID),
}
CHANGES = {
    "truncated": lambda path, _: os.truncate(path, 100),
    "emptied": lambda path, _: path.write_bytes(b""),
    "written over": lambda path, other: shutil.copyfile(other, path),
}


@POSIX
@pytest.mark.parametrize("part", ["m.onnx", "m.onnx_data"])
@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("call", RUNS)
def test_a_file_that_changes_in_place_is_not_run_on(pair, copy, part, change, call):
    """A mapped file that becomes shorter would kill the process: SIGBUS."""
    runner = open_onnx(copy, device="cpu")
    want = RUNS[call](runner)
    changed = copy.with_name(part)
    (copy.parent / "new").write_bytes(changed.read_bytes())
    CHANGES[change](changed, pair[1] / part)
    with pytest.raises(EngineError, match=rf"{part}: changed since it was opened; open it again$"):
        RUNS[call](runner)
    (copy.parent / "new").replace(changed)  # another file, which is not the one that is mapped
    with pytest.raises(EngineError, match="changed since it was opened"):
        RUNS[call](runner)
    again = open_onnx(copy, device="cpu")
    np.testing.assert_array_equal(RUNS[call](again), want)
    changed.unlink()
    np.testing.assert_array_equal(RUNS[call](again), want)  # the mapped file outlives its name


@POSIX
@pytest.mark.parametrize("profile", ["portable", "fused"])
def test_a_decode_step_notices_a_file_cut_short(file_of, tmp_path, profile):
    path = shutil.copyfile(file_of(profile), tmp_path / "m.onnx")
    runner = open_onnx(path, device="cpu")
    cache = runner.run([[1, 2]], cache=runner.new_cache()).cache
    cache = runner.run([[3]], cache=cache, last_only=True).cache
    os.truncate(path, 100)
    with pytest.raises(EngineError, match=r"m\.onnx: changed since it was opened"):
        runner.run([[4]], cache=cache, last_only=True)


def test_verify_accepts_data_that_is_as_written(pair, tmp_path):
    write_checkpoint(tmp_path / "small", SMALL)
    assert verify(pair[0] / "m.onnx", model=str(tmp_path / "small")).passed
