"""Without one of its packages, whatever needs it is one line with the pip command."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from gpt2kit.errors import GPT2KitError, MissingPackageError
from gpt2kit.packages import explained_imports, missing_package

TORCH, ONNX = {"torch", "safetensors", "tokenizers"}, {"onnx", "onnx_ir", "onnxruntime"}
PROMPTS = {  # command -> its arguments; each runs on both engines
    "lens": ["hi"],
    "generate": ["hi", "-n", "2"],
    "heads": ["--length", "9"],
    "attn": ["hi", "--layer", "0", "--head", "0"],
    "attribute": ["hi", "--target", "a"],
    "patch": ["--clean", "a", "--corrupt", "b", "--target", "c"],
    "ablate": ["hi", "--target", "a"],
    "bench": [],
    "facts": [],
}
# What is called -> (its arguments, the packages that it needs). {folder}, {file}: the tiny model.
COMMANDS = {
    **{
        f"{name} on torch": ([name, *args, "--model", "{folder}"], TORCH | {"rich"})
        for name, args in PROMPTS.items()
    },
    **{
        f"{name} on onnx": ([name, *args, "--onnx", "{file}"], ONNX | {"tokenizers", "rich"})
        for name, args in PROMPTS.items()
    },
    "export": (
        ["export", "--model", "{folder}", "--onnx", "out.onnx"],
        TORCH | ONNX | {"onnxscript", "rich"},
    ),
    "verify": (["verify", "{file}", "--model", "{folder}"], TORCH | ONNX | {"rich"}),
    "inspect": (["inspect", "{file}"], ONNX | {"tokenizers", "rich"}),
    "a hub id": (["lens", "hi", "--model", "no/body"], TORCH | {"huggingface_hub", "rich"}),
    "taps": (["taps"], {"rich"}),
    "doctor": (["doctor"], {"rich"}),
}
COMMANDS["bench on torch"][1].update(ONNX)
for engine in ("torch", "onnx"):
    COMMANDS[f"generate on {engine}"][1].discard("rich")
PYTHON = {
    "gpt2kit.load": TORCH,
    "gpt2kit.GPT2": {"torch"},
    "exporters.open_onnx": ONNX | {"tokenizers"},
    "exporters.inspect_onnx": ONNX | {"tokenizers"},
    "probes.logit_lens": {"tokenizers"},
    "exporters.export_onnx": TORCH | ONNX | {"onnxscript"},
    "exporters.verify": TORCH | ONNX,
    "gpt2kit.load('no/body')": TORCH | {"huggingface_hub"},
    "probes.linear_probe(None, ['a'], [1], tap='embed')": {"sklearn"},
    "probes.TunedLens.load('no.safetensors')": {"safetensors"},
    "from gpt2kit.result import Result; Result.to_dataframe(None)": {"pandas"},
    "from gpt2kit.result import as_html; as_html('hi')": {"rich"},
}
PIP = {"onnx_ir": "onnx-ir", "sklearn": r"gpt2kit\[probes\]", "onnxruntime": "onnxruntime(-gpu)?"}
PACKAGES = sorted(
    {name for _, needs in COMMANDS.values() for name in needs}.union(*PYTHON.values())
)
# Runs each command and expression where one package cannot be imported; prints what came of it.
DRIVER = '''
import importlib.abc, json, sys

hidden, commands, lines = json.loads(sys.argv[1])

class Hidden(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == hidden:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, Hidden())
from click.testing import CliRunner
from gpt2kit.cli import main
from gpt2kit.errors import GPT2KitError

START = """
import gpt2kit, exporters, probes
"""
found = {}
for line in lines:
    try:
        exec(START + line)
        found[line] = [0, "", ""]
    except GPT2KitError as error:
        found[line] = [error.exit_code, "", f"gpt2kit: error: {error}\\n"]
for name, arguments in commands.items():
    result = CliRunner().invoke(main, arguments)
    found[name] = [result.exit_code, result.stdout, result.stderr]
print(json.dumps(found))
'''


def outcomes(hidden: str, commands: dict, lines: list[str]) -> dict:
    """What each command and each line of Python does where one package is hidden."""
    done = subprocess.run(
        [sys.executable, "-c", DRIVER, json.dumps([hidden, commands, lines])],
        capture_output=True, text=True, timeout=300, env=os.environ | {"HF_HUB_OFFLINE": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


@pytest.fixture(scope="module")
def tiny(file_of, tmp_path_factory):
    """A checkpoint folder, and an exported file of it."""
    from tests.conftest import byte_tokenizer, write_checkpoint

    folder = tmp_path_factory.mktemp("tiny") / "tiny"
    write_checkpoint(folder)
    (folder / "tokenizer.json").write_text(byte_tokenizer().to_json())
    return {"folder": str(folder), "file": str(file_of())}


@pytest.mark.slow
@pytest.mark.parametrize("hidden", PACKAGES)
def test_what_needs_a_hidden_package_says_how_to_install_it(hidden, tiny, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    commands = {
        name: [argument.format(**tiny) for argument in arguments]
        for name, (arguments, needs) in COMMANDS.items()
        if hidden in needs or name in ("generate on onnx", "inspect", "taps", "doctor")
    }
    needing = {name for name in commands if hidden in COMMANDS[name][1]}
    needing |= {line for line, needs in PYTHON.items() if hidden in needs}
    assert needing
    lines = [line for line in PYTHON if line in needing]
    pip = f"pip install {PIP.get(hidden, hidden)}"
    words = f"gpt2kit: error: {hidden} is not installed; run `{pip}`.*\n"
    for name, (code, stdout, stderr) in outcomes(hidden, commands, lines).items():
        if name in needing:
            assert (code, stdout) == (2, ""), name
            assert re.fullmatch(words, stderr), (name, stderr)
        else:  # doctor has findings
            assert (code, stderr) == (int(name == "doctor" and code), ""), name
    assert list(Path().iterdir()) == []


def test_our_own_modules_and_other_errors_are_left_alone():
    for error in (
        ModuleNotFoundError("No module named 'gpt2kit.no'", name="gpt2kit.no"),
        ImportError("cannot import name 'no' from 'probes'", name="probes"),
        ImportError("no name"),
        ValueError("no"),
    ):
        assert missing_package(error) is None
    with pytest.raises(ModuleNotFoundError, match=r"gpt2kit\.no"), explained_imports():
        import gpt2kit.no  # noqa: F401


def test_a_package_that_does_not_import_says_so():
    error = ImportError("libcudart.so.13: cannot open\nshared object file", name="onnx.onnx_cpp")
    assert str(missing_package(error)) == (
        "onnx does not import (libcudart.so.13: cannot open shared object file); "
        "run `pip install --upgrade --force-reinstall onnx`"
    )


def test_the_error_is_an_import_error_and_one_of_ours():
    assert issubclass(MissingPackageError, ImportError)
    assert issubclass(MissingPackageError, GPT2KitError)
