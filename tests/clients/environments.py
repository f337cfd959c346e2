"""An environment of its own for each foreign client, built once, under `.clients/`.

`environments/NAME.txt` has the packages of a Python client, `environments/node` of JavaScript.
"""

import hashlib
import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from functools import cache
from pathlib import Path

import pytest

HERE = Path(__file__).parent
BUILT = HERE.parents[1] / ".clients"
NODE = BUILT / "node"
NO_DOWNLOAD = {"ONNXRUNTIME_NODE_INSTALL": "skip", "ONNXRUNTIME_NODE_INSTALL_CUDA": "skip"}
# What pip and npm say if they cannot reach their registry.
UNREACHABLE = (
    "Connection",
    "ProxyError",
    "SSLError",
    "Could not fetch URL",
    "Network is unreachable",
    "name resolution",
    "timed out",
    "ENOTFOUND",
    "EAI_AGAIN",
    "ECONNREFUSED",
    "ECONNRESET",
    "ETIMEDOUT",
)


def not_tested(reason: str) -> None:
    """Skip, so that the end of the run says that this was not tested."""
    pytest.skip(f"NOT TESTED: {reason}")


def tool(*names: str) -> str:
    """The path of the first of these programs that the machine has."""
    for name in names:
        if found := shutil.which(name):
            return found
    not_tested(f"{names[0]} is not installed")
    raise AssertionError


def python(name: str) -> list[str]:
    """The command of the Python that has the packages of `environments/NAME.txt`."""
    if problem := build_python(name):
        not_tested(problem)
    return [str(python_of(BUILT / name))]


def node() -> list[str]:
    """The command of node, to be run in `NODE`."""
    program = tool("node")
    if problem := build_node(tool("npm")):
        not_tested(problem)
    return [program]


def python_of(folder: Path) -> Path:
    """The Python of an environment."""
    return folder / ("Scripts" if os.name == "nt" else "bin") / "python"


@cache
def build_python(name: str) -> str:
    """Make the environment of a Python client; return why that is not possible, or ""."""
    pins, folder = HERE / "environments" / f"{name}.txt", BUILT / name
    pip = [python_of(folder), "-m", "pip", "install", "-r", pins]
    return build(folder, sys.version + pins.read_text(), [sys.executable, "-m", "venv", "."], pip)


@cache
def build_node(npm: str) -> str:
    """Install the packages of JavaScript; return why that is not possible, or ""."""
    pins = [HERE / "environments" / "node" / f"package{lock}.json" for lock in ("", "-lock")]
    copies = ["cp", *pins, "."]
    return build(NODE, pins[1].read_text(), copies, [npm, "ci", "--no-audit", "--no-fund"])


def build(folder: Path, key: str, *commands: Sequence[str | Path]) -> str:
    """Run `commands` in a new folder, unless it was built with the same key.

    Returns what cannot be fetched, or "". Fails if a command fails for another reason.
    """
    stamp = folder / ".built"
    digest = hashlib.sha256(key.encode()).hexdigest()
    if stamp.is_file() and stamp.read_text() == digest:
        return ""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    for command in commands:
        result = subprocess.run(
            command, cwd=folder, env=os.environ | NO_DOWNLOAD, capture_output=True, text=True
        )
        said = result.stdout + result.stderr
        if result.returncode and any(word in said for word in UNREACHABLE):
            return f"the packages of {folder.name} cannot be fetched"
        assert result.returncode == 0, said
    stamp.write_text(digest)
    return ""
