"""Commands that run a model refuse one that overflows: one line, exit code 2, nothing written."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from tests.conftest import byte_tokenizer, write_checkpoint
from tests.gpt2kit.cli.support import PROBES, assert_one_line, run
from tests.overflow import FIRST, altered_file, half_model

COMMANDS = {
    **{name: [name, *words] for name, words in PROBES.items() if name != "facts"},
    "lens": ["lens", "the cat"],
    "lens --json": ["lens", "the cat", "--json"],
    "generate": ["generate", "-n", "5", "the cat"],
    "generate two": ["generate", "-n", "5", "the cat", "a"],
    "generate --json": ["generate", "-n", "5", "the cat", "--json"],
    "generate --lens": ["generate", "-n", "5", "the cat", "--lens"],
    "generate --edit": ["generate", "-n", "5", "the cat", "--edit", "blocks.0.z = 0"],
    "bench": ["bench"],
}
HALF = r"in float16 holds numbers up to 65504; try --dtype float32"


@pytest.fixture(scope="module")
def big(tmp_path_factory) -> str:
    """A checkpoint that overflows in float16."""
    folder = tmp_path_factory.mktemp("big")
    write_checkpoint(folder)
    save_file(half_model(torch.float32).state_dict(), folder / "model.safetensors")
    (folder / "tokenizer.json").write_text(byte_tokenizer().to_json())
    return str(folder)


@pytest.fixture(scope="module", params=["portable", "fused"])
def altered(request, file_of, tmp_path_factory) -> str:
    return str(
        altered_file(file_of(request.param, taps="*", edits="*"), tmp_path_factory.mktemp("inf"))
    )


def refused(*words: str, message: str) -> None:
    """One line, apart from the stages that `export` counts."""
    result = run(*words)
    lines = result.stderr.splitlines(keepends=True)
    told = "".join(line for line in lines if not line.endswith(" …\n"))
    assert_one_line(result.exit_code, result.stdout, told, message)


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("name", COMMANDS)
def test_a_model_that_overflows(big, name):
    refused(*COMMANDS[name], "--model", big, "--dtype", "float16", message=f"{FIRST}.*{HALF}")


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("name", COMMANDS)
def test_a_file_that_overflows(altered, name):
    refused(*COMMANDS[name], "--onnx", altered, message=FIRST)


@pytest.mark.parametrize("more", [[], ["--json"], ["--lens"]])
def test_an_edit_that_overflows(engine, more):
    words = ["generate", "-n", "5", "the cat", "--edit", "ln_f = 1e38", *more, *engine[0]]
    refused(*words, message=r"first seen in logits .* make the edits smaller")


@pytest.mark.slow
@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("profile", ["portable", "fused"])
def test_an_export_of_a_model_that_overflows_leaves_nothing(big, profile):
    words = ["export", "--model", big, "--onnx", "big.onnx", "--profile", profile]
    refused(*words, "--dtype", "float16", message=f"{FIRST}.*{HALF}")
    assert list(Path.cwd().iterdir()) == []


@pytest.mark.parametrize(
    "words", [["lens", "a"], ["export", "--onnx", "huge.onnx"]], ids=["load", "export"]
)
def test_weights_that_become_infinite_are_named(tmp_path, words):
    folder = tmp_path / "huge"
    weights = write_checkpoint(folder)
    weights["h.2.mlp.c_fc.bias"][5] = -7e4
    save_file(weights, folder / "model.safetensors")
    message = r"h\.2\.mlp\.c_fc\.bias holds 70000, but float16 holds numbers up to 65504; try --dt"
    refused(*words, "--model", str(folder), "--dtype", "float16", message=message)
    assert [path.name for path in Path.cwd().iterdir()] == ["huge"]
