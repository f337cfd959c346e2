"""Running commands in tests, and checking how they end."""

import re
import subprocess
import sys

import pytest
from click.testing import CliRunner, Result
from rich.console import Console

from gpt2kit.cli import main
from tests.conftest import CONFIG

POSIX = pytest.mark.skipif(sys.platform == "win32", reason="needs POSIX signals and pipes")


LONG = "x" * (CONFIG.n_positions + 1)


FULL = "x" * CONFIG.n_positions


OFFLINE = {"HF_HUB_OFFLINE": "1", "PYTHONUTF8": "1"}


def run(*args: str, stdin: bytes | str | None = None) -> Result:
    return CliRunner().invoke(main, list(args), input=stdin)


def succeeded(result: Result) -> str:
    assert (result.exit_code, result.stderr) == (0, ""), result.output
    return result.stdout


def assert_one_line(code: int, stdout: str, stderr: str, message: str, exit_code: int = 2) -> None:
    assert (code, stdout) == (exit_code, "")
    assert stderr.endswith("\n")
    (line,) = stderr.splitlines()
    assert line.startswith("gpt2kit: error: ")
    assert re.search(message, line), line


def process(*args: str | bytes, **options) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "gpt2kit.cli", *args]
    return subprocess.run(command, capture_output=True, timeout=300, **options)


PROBES = {  # command -> arguments that do
    "heads": ["--length", "16"],
    "attn": ["the cat", "--layer", "1", "--head", "2"],
    "attribute": ["the cat", "--target", "a", "--foil", "b"],
    "patch": ["--clean", "the cat", "--corrupt", "the bat", "--target", "a", "--foil", "b"],
    "ablate": ["the cat", "--target", "a", "--foil", "b"],
    "facts": [],
}


def drawn(result, width: int = 80) -> str:
    console = Console(width=width, color_system=None)
    with console.capture() as capture:
        console.print(result.render())
    return capture.get()
