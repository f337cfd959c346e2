"""Standard streams that are closed or full: one line, no traceback, the right exit code."""

import subprocess
import sys

import pytest

from tests.gpt2kit.cli.support import POSIX, assert_one_line

pytestmark = POSIX

QUICK = {"--help": "Usage", "--version": "version", "lens --help": "Usage", "taps": "blocks"}
LENS = "lens Thé --model bundled"
LONG = {  # these import torch
    "doctor": "python",
    LENS: "logit lens",
    f"{LENS} --json": "bundled",
    "generate Once --model bundled -n 2": "Once",
}
COMMANDS = [*QUICK, *(pytest.param(command, marks=pytest.mark.slow) for command in LONG)]
FULL = "standard output cannot be written: No space left on device"
CLOSED = "standard output is closed"


def shell(command: str) -> subprocess.CompletedProcess:
    """Run a command line, in which `gpt2kit` is this one."""
    function = f"gpt2kit() {{ '{sys.executable}' -m gpt2kit.cli \"$@\"; }}; set -o pipefail; "
    return subprocess.run(
        ["bash", "-c", function + command], capture_output=True, text=True, encoding="utf-8"
    )


@pytest.mark.parametrize("command", COMMANDS)
def test_output_that_cannot_be_written_is_one_line(command):
    done = shell(f"gpt2kit {command} >/dev/full")
    assert_one_line(done.returncode, done.stdout, done.stderr, FULL)


@pytest.mark.parametrize("command", ["--help", "taps", "generate Once --model bundled -n 2"])
def test_closed_output_is_one_line(command):
    done = shell(f"gpt2kit {command} >&-")
    assert_one_line(done.returncode, done.stdout, done.stderr, CLOSED)


@pytest.mark.parametrize(
    ("command", "streams"),
    [
        *((command, streams) for command in QUICK for streams in ("<&-", "2>&-", "2>/dev/full")),
        pytest.param(LENS, "<&- 2>&-", marks=pytest.mark.slow),
        pytest.param(LENS, "2>/dev/full", marks=pytest.mark.slow),
    ],
)
def test_other_closed_streams_do_no_harm(command, streams):
    done = shell(f"gpt2kit {command} {streams}")
    assert (done.returncode, done.stderr) == (0, "")
    assert (QUICK | LONG)[command] in done.stdout


@pytest.mark.parametrize("streams", ["2>&-", "2>/dev/full", ">&- 2>&-", ">/dev/full 2>/dev/full"])
def test_an_error_that_nobody_can_read_still_sets_the_exit_code(streams):
    done = shell(f"gpt2kit lens Once --topk none {streams}")
    assert (done.returncode, done.stdout, done.stderr) == (2, "", "")


def test_a_prompt_from_closed_input_is_one_line():
    done = shell("gpt2kit lens - --model bundled <&-")
    assert_one_line(done.returncode, done.stdout, done.stderr, "'-' reads standard input, which is")


def test_a_prompt_from_input_that_cannot_be_read_is_one_line():
    done = shell("gpt2kit lens - --model bundled 0>/dev/null")
    assert_one_line(done.returncode, done.stdout, done.stderr, "standard input cannot be read")


@pytest.mark.parametrize(
    "command", ["--help", "taps", pytest.param(f"{LENS} --json", marks=pytest.mark.slow)]
)
def test_a_reader_of_one_line_sees_it(command):
    done = shell(f"gpt2kit {command} | head -n 1")
    assert done.returncode in (0, 1)  # 1 if it was still writing
    assert len(done.stdout.splitlines()) == 1
    assert done.stderr == ""


@pytest.mark.parametrize("encoding", ["LC_ALL=C", "LC_ALL=C PYTHONUTF8=0 PYTHONIOENCODING=ascii"])
@pytest.mark.parametrize("command", ["taps", pytest.param(LENS, marks=pytest.mark.slow)])
def test_any_encoding_of_the_terminal_does(command, encoding):
    done = shell(f"export {encoding}; gpt2kit {command}")
    assert (done.returncode, done.stderr) == (0, "")
    assert (QUICK | LONG)[command] in done.stdout


@pytest.mark.parametrize("encoding", ["LC_ALL=C", "LC_ALL=C PYTHONUTF8=0 PYTHONIOENCODING=ascii"])
def test_an_error_in_any_encoding_is_one_line(encoding):
    done = shell(f"export {encoding}; gpt2kit lens Thé --topk é")
    assert_one_line(done.returncode, done.stdout, done.stderr, "--topk")
