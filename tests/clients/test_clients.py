"""Foreign clients run our files unchanged: torch's tokens, and its logits within the tolerance.

Each program of `programs/` knows nothing of gpt2kit. It reads an exported folder in an environment
of its own and prints, for each file, the tokens of greedy decoding and the logits of each step.
"""

import json
from functools import cache
from pathlib import Path

import numpy as np
import pytest

from exporters import export_onnx, open_onnx
from exporters.parity.compare import TOLERANCE, relative_error
from gpt2kit.torch_engine.dtypes import DTYPES, rounded
from tests.clients import environments, running

pytestmark = [pytest.mark.clients, pytest.mark.slow]

TEXT, COUNT = "Once upon a time, there was a little girl", 16
FILES = {
    "model.onnx": {},
    "model_fp16.onnx": {"dtype": "float16"},
    "model_int8.onnx": {"quantize": "int8"},
}
INT8 = 0.05  # between kernels, which round activations in ways of their own
PROFILES = ("portable", "fused")
TRANSFORMERS_WEB = "/node_modules/@huggingface/transformers/node_modules/onnxruntime-web/dist"
BUILDS = {
    "wasm": "/node_modules/onnxruntime-web/dist/ort.wasm.min.mjs",
    "asyncify": f"{TRANSFORMERS_WEB}/ort.webgpu.min.mjs",
    "jspi": f"{TRANSFORMERS_WEB}/ort.jspi.min.mjs",
}
CLIENTS = [*running.PYTHON, "transformers_js", *(f"browser-{build}" for build in BUILDS)]
# GroupQueryAttention is onnxruntime's own operator.
PAIRS = [(c, p) for c in CLIENTS for p in PROFILES if (c, p) != ("openvino", "fused")]


@pytest.fixture(scope="module")
def folders(bundled, tmp_path_factory) -> dict[str, Path]:
    """Profile -> a folder that holds every file, as an engineer would lay it out."""
    out = tmp_path_factory.mktemp("clients")
    for profile in PROFILES:
        (out / profile / "onnx").mkdir(parents=True)
        for name, options in FILES.items():
            export_onnx(bundled, out / profile / "onnx" / name, profile=profile, **options)
    return {profile: out / profile for profile in PROFILES}


@pytest.fixture(scope="module")
def said(folders, bundled):
    """A function (client, profile) -> what the client said of each file; each runs once."""
    ids = bundled.tokenizer.encode(TEXT)

    @cache
    def run(program: str, profile: str) -> list[dict]:
        request = {"folder": str(folders[profile]), "files": [*FILES], "text": TEXT}
        request |= {"ids": ids, "count": COUNT, "builds": BUILDS}
        path = running.path(program)
        output = running.run(path, path.read_text(), request)
        return [json.loads(line) for line in output.splitlines() if line.startswith("{")]

    def of(client: str, profile: str) -> dict[str, dict]:
        program, _, build = client.partition("-")
        results = run(program, profile)
        return {result["file"]: result for result in results if result.get("build", "") == build}

    return of


@pytest.fixture(scope="module")
def expected(folders, bundled):
    """A function file -> (tokens, logits) of float arithmetic on the file's weights, step by step.

    For int8, whose clients round activations in their own ways, those of our engine on the file.
    """

    @cache
    def of(profile: str, file: str) -> tuple[list[int], np.ndarray]:
        if "quantize" in FILES[file]:
            return greedy(open_onnx(folders[profile] / "onnx" / file, device="cpu"))
        dtype = FILES[file].get("dtype", "float32")
        tokens, _ = greedy(bundled)
        _, logits = greedy(rounded(bundled, DTYPES[dtype]), tokens)
        return tokens, logits

    return of


def greedy(runner, forced: list[int] | None = None) -> tuple[list[int], np.ndarray]:
    """The likeliest tokens, or the forced ones, and the logits that each was chosen from."""
    ids, rows, cache = runner.tokenizer.encode(TEXT), [], runner.new_cache()
    tokens: list[int] = []
    chunk = ids
    for step in range(COUNT):
        run = runner.run([chunk], cache=cache, last_only=True)
        cache = run.cache
        rows.append(run.logits[0, -1])
        tokens.append(forced[step] if forced else int(rows[-1].argmax()))
        chunk = tokens[-1:]
    return tokens, np.array(rows)


@pytest.mark.parametrize("file", FILES)
@pytest.mark.parametrize(("client", "profile"), PAIRS)
def test_a_foreign_client_runs_the_file(said, expected, client, profile, file, bundled):
    result = said(client, profile)[file]
    tokens, logits = expected(profile, file)
    allowed = INT8 if "quantize" in FILES[file] else TOLERANCE[FILES[file].get("dtype", "float32")]
    assert relative_error(logits, np.array(result["logits"], np.float32)) <= allowed
    assert result["tokens"] == tokens
    ids = bundled.tokenizer.encode(TEXT)
    assert result.get("ids", ids) == ids
    assert result.get("text", TEXT + bundled.tokenizer.decode(tokens)) == (
        TEXT + bundled.tokenizer.decode(tokens)
    )


def test_a_registry_out_of_reach_is_not_a_pass(tmp_path, monkeypatch):
    monkeypatch.setattr(environments, "BUILT", tmp_path)
    for name, value in {"INDEX_URL": "http://127.0.0.1:9/simple", "RETRIES": "1"}.items():
        monkeypatch.setenv(f"PIP_{name}", value)
    for name in ("FIND_LINKS", "EXTRA_INDEX_URL"):
        monkeypatch.setenv(f"PIP_{name}", "")
    monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")
    environments.build_python.cache_clear()
    with pytest.raises(pytest.skip.Exception, match="NOT TESTED: the packages of genai cannot be"):
        environments.python("genai")
    environments.build_python.cache_clear()
