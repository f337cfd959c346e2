"""Fuzzers with a fixed budget: config.json, safetensors headers, ONNX metadata, edit texts.

Whatever a file or a text holds, it is read, or it is one line of a GPT2KitError with exit code 2.
Nothing is left behind; an example takes under 5 seconds and 1 GB.
"""

import contextlib
import json
import os
import struct
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from exporters.file.metadata import FileMetadata
from gpt2kit import Edit, GPT2Config, load
from gpt2kit.edit_arrays import Chunk, affine
from gpt2kit.errors import GPT2KitError, InternalError
from tests.conftest import CONFIG, write_checkpoint
from tests.gpt2kit.cli.support import POSIX

ROOT = Path(__file__).parents[1]

FUZZED = settings(
    max_examples=250,
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=list(HealthCheck),
)
SECONDS, BYTES = 5.0, 1 << 30

NUMBERS = st.sampled_from(
    [0, 1, -1, 3, 24, 40, 261, 2**31, 2**63, 2**64, 10**30, 1e30, float("inf"), float("nan"), -0.0]
)
SCALARS = st.none() | st.booleans() | NUMBERS | st.integers() | st.floats() | st.text(max_size=9)
JSON = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=6), inner),
    max_leaves=6,
)


@contextlib.contextmanager
def one_example() -> Iterator[None]:
    """Success, or one line of ours with exit code 2, in time."""
    start = time.perf_counter()
    try:
        yield
    except GPT2KitError as error:
        caught = error
    else:
        caught = GPT2KitError("none")
    assert caught.exit_code == 2
    assert len(str(caught).splitlines()) == 1
    assert time.perf_counter() - start < SECONDS


def limit_memory() -> None:
    """Let this process grow by 1 GB and no more."""
    import resource

    size = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (size + BYTES, size + BYTES))


KEYS = [*CONFIG.to_hf(), "n_inner", "hidden_size", "num_attention_heads", "pruned_heads", "_x"]


@given(changes=st.dictionaries(st.sampled_from(KEYS) | st.text(max_size=6), JSON, max_size=3))
@FUZZED
def fuzz_config(changes):
    with one_example():
        text = json.dumps(CONFIG.to_hf() | changes)
        with tempfile.TemporaryDirectory() as folder:
            (Path(folder) / "config.json").write_text(text)
            GPT2Config.from_file(Path(folder) / "config.json")


@given(text=st.binary(max_size=80) | st.text(alphabet='[]{}":,0123456789eE+-.tnull', max_size=60))
@FUZZED
def fuzz_config_text(text):
    with one_example(), tempfile.TemporaryDirectory() as folder:
        content = text if isinstance(text, bytes) else text.encode()
        (Path(folder) / "config.json").write_bytes(content)
        GPT2Config.from_file(Path(folder) / "config.json")


@cache
def whole_weights() -> tuple[dict, bytes]:
    """The header and the data of a checkpoint that loads."""
    with tempfile.TemporaryDirectory() as folder:
        write_checkpoint(Path(folder))
        content = Path(folder, "model.safetensors").read_bytes()
    size = struct.unpack("<Q", content[:8])[0]
    return json.loads(content[8 : 8 + size]), content[8 + size :]


TENSOR = {
    "dtype": st.sampled_from(["F32", "F16", "F64", "BF16", "I64", "U8", "F8_E4M3"]) | JSON,
    "shape": st.lists(NUMBERS | st.integers(), max_size=4) | JSON,
    "data_offsets": st.lists(NUMBERS | st.integers(), min_size=2, max_size=2) | JSON,
}


@given(
    changes=st.dictionaries(
        st.sampled_from(["wte.weight", "wpe.weight", "ln_f.bias", "h.0.ln_1.weight", "x"]),
        st.fixed_dictionaries(TENSOR) | st.fixed_dictionaries({}, optional=TENSOR) | JSON,
        max_size=2,
    ),
    extra=st.sampled_from([0, 0, 1, -1, 7, 2**20, 2**62, 2**64 - 1]),
    cut=st.sampled_from([0, 0, 1, 100]),
)
@FUZZED
def fuzz_safetensors(changes, extra, cut):
    header, data = whole_weights()
    with one_example(), tempfile.TemporaryDirectory() as folder:
        text = json.dumps({**header, **changes}).encode()
        size = (len(text) + extra) % 2**64
        content = struct.pack("<Q", size) + text + data
        Path(folder, "model.safetensors").write_bytes(content[: len(content) - cut])
        Path(folder, "config.json").write_text(json.dumps(CONFIG.to_hf()))
        load(folder, device="cpu")


def whole_metadata() -> dict[str, str]:
    names = {"version": "0.1.0", "model": "you/model", "revision": None, "dtype": "float32"}
    digests = {"weights_sha256": "ab" * 32, "profile": "portable", "opset": 23}
    taps = {"taps": ("embed",), "edits": ("blocks.1.z",)}
    return FileMetadata(config=CONFIG, **names, **digests, **taps).to_metadata()


@given(
    changes=st.dictionaries(
        st.sampled_from([*sorted(whole_metadata()), "gpt2kit.parity", "gpt2kit.data"]),
        JSON.map(json.dumps) | st.text(max_size=20) | st.sampled_from(["[" * 9999, "9" * 5000]),
        max_size=3,
    )
)
@FUZZED
def fuzz_metadata(changes):
    with one_example():
        FileMetadata.from_metadata(whole_metadata() | changes, Path("x.onnx"))


CHUNK = Chunk(np.zeros(1, np.int64), pos=3, keys=3)
PIECES = st.sampled_from(
    [
        "blocks.1.z", "blocks.*.", "embed", "*", "[", "]", "head", "pos", "=", ":", ",", "+=", "-=",
        "*=", " ", "0", "-1", "9" * 20, "1e400", "x.npy", "2 * ", "-", ".", "?", "\0", "٣", "\n",
    ]
)  # fmt: skip
EDITS = st.lists(PIECES, max_size=12).map("".join) | st.text(max_size=30)
PLACES = st.builds(
    "blocks.{}.{}[{}={}] {} {}".format,
    st.sampled_from(["0", "-1", "*", "7", "9" * 20]),
    st.sampled_from(["z", "pattern", "resid_post", "mlp_*"]),
    st.sampled_from(["head", "pos", "batch", "d_model", "key", "x"]),
    st.lists(st.sampled_from(["", ":", "1", "-2", "9" * 20, "[", "]", ","]), max_size=5).map(
        "".join
    ),
    st.sampled_from(["=", "+=", "-=", "*="]),
    st.sampled_from(["0", "x.npy", "-x.npy", "1e39", "3 * x.npy", "nan"]),
)


@given(text=EDITS | PLACES)
@FUZZED
def fuzz_edits(text):
    with one_example():
        affine([Edit.parse(text)], CONFIG, CHUNK)


FUZZERS = {
    fuzz.__name__: fuzz
    for fuzz in (fuzz_config, fuzz_config_text, fuzz_safetensors, fuzz_metadata, fuzz_edits)
}


def run_all() -> None:
    """Each fuzzer in turn; `affine` and `load` meet arrays of a real size first."""
    whole_weights()
    np.save("x.npy", np.ones(CONFIG.n_embd, np.float32))
    limit_memory()
    for name, fuzz in FUZZERS.items():
        start = time.perf_counter()
        fuzz()
        print(f"{name} {time.perf_counter() - start:.1f} s")


@POSIX
@pytest.mark.slow
def test_whatever_a_file_or_a_text_holds_is_read_or_one_line(tmp_path):
    """In a process of its own, whose memory is limited."""
    (tmp_path / "temporary").mkdir()
    done = subprocess.run(
        [sys.executable, "-c", "from tests.test_fuzz import run_all; run_all()"],
        capture_output=True, text=True, cwd=tmp_path,
        env=os.environ | {"TMPDIR": str(tmp_path / "temporary"), "PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr[-5000:]
    assert [line.split()[0] for line in done.stdout.splitlines()] == list(FUZZERS)
    assert list((tmp_path / "temporary").iterdir()) == []
    left = {file.name for file in tmp_path.iterdir()}
    assert left - {".hypothesis"} == {"temporary", "x.npy"}


def test_a_fuzzer_finds_what_is_not_an_error_of_ours():
    with pytest.raises(ZeroDivisionError), one_example():
        raise ZeroDivisionError
    with pytest.raises(AssertionError), one_example():
        raise InternalError("exit code 70")
