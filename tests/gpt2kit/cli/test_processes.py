"""The command as a process: signals, pipes, encodings, tracebacks."""

import json
import os
import signal
import subprocess
import sys
from dataclasses import replace

import pytest

from exporters.file.drafts import sweep
from gpt2kit.cli.signals import raise_on_signals
from gpt2kit.errors import ExportError, InputError
from tests.conftest import CONFIG, byte_tokenizer, write_checkpoint
from tests.gpt2kit.cli.support import FULL, POSIX, assert_one_line, process, run


@pytest.fixture(scope="session")
def endless(tmp_path_factory) -> str:
    """A model that can talk for minutes."""
    path = tmp_path_factory.mktemp("cli") / "endless"
    write_checkpoint(path, replace(CONFIG, n_positions=50_000, n_layer=1))
    (path / "tokenizer.json").write_text(byte_tokenizer().to_json())
    return str(path)


@pytest.fixture
def talking(endless):
    """A process of `gpt2kit generate` that has begun to print."""
    command = [sys.executable, "-m", "gpt2kit.cli", "generate", "the ", "--model", endless]
    talk = subprocess.Popen(
        [*command, "-n", "49000", "--seed", "0"], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    assert talk.stdout.read(20)
    yield talk
    talk.kill()
    talk.communicate()


@POSIX
def test_ctrl_c_ends_without_a_traceback(talking):
    talking.send_signal(signal.SIGINT)
    _, stderr = talking.communicate(timeout=120)
    assert talking.returncode in (1, 130, -signal.SIGINT)
    assert b"Traceback" not in stderr


@POSIX
def test_a_reader_that_has_seen_enough_ends_it_without_a_traceback(talking):
    talking.stdout.close()
    assert talking.wait(timeout=120) != 0
    assert talking.stderr.read() == b""


@POSIX
def test_a_closed_pipe_ends_a_grid_without_a_traceback(folder):
    command = f"'{sys.executable}' -m gpt2kit.cli lens {FULL} --model '{folder}' --topk 99 --json"
    done = subprocess.run(["sh", "-c", f"{command} | head -c 9"], capture_output=True)
    assert len(done.stdout) == 9
    assert done.stderr == b""


def test_a_process_prints_one_line_and_exits_2(tmp_path):
    (tmp_path / "bad.onnx").write_bytes(b"\x08\x0ahello")
    done = process("lens", "x", "--onnx", "bad.onnx", text=True)
    assert_one_line(done.returncode, done.stdout, done.stderr, "not an ONNX file")


@POSIX
def test_argument_bytes_that_are_not_utf8_are_one_line():
    done = process("lens", b"ab\xff", "--model", "bundled")
    assert_one_line(
        done.returncode, done.stdout.decode(), done.stderr.decode(), r"not UTF-8 \(byte 2\)"
    )


@pytest.mark.parametrize("command", ["generate", "lens"])
def test_standard_input_must_be_utf8_and_hold_something(folder, command):
    for stdin, message in (
        (b"ab\xff\xfe", r"standard input is not UTF-8 \(byte 2\)"),
        (b"", "empty"),
    ):
        result = run(command, "-", "--model", folder, stdin=stdin)
        assert_one_line(result.exit_code, result.stdout, result.stderr, message)


def test_a_terminal_without_unicode_shows_what_it_can(folder):
    latin_only = os.environ | {"PYTHONIOENCODING": "latin-1", "PYTHONUTF8": "0"}
    done = process("lens", "thé", "--model", folder, env=latin_only)
    assert (done.returncode, done.stderr) == (0, b"")
    assert b"final" in done.stdout
    done = process("lens", "thé", "--model", folder, "--json", env=latin_only)
    ids = byte_tokenizer().encode("thé")
    assert json.loads(done.stdout.decode("utf-8"))["tokens"] == byte_tokenizer().tokens(ids)


@pytest.mark.slow
def test_debug_shows_the_traceback_and_the_message(folder):
    done = process("lens", "x", "--model", folder, "--topk", "0", "--debug", text=True)
    assert done.returncode not in (0, None)
    assert done.stderr.startswith("Traceback")
    assert "top_k = 0 must be from 1" in done.stderr.splitlines()[-1]


@pytest.mark.parametrize("args", [["--debug", "lens", "x"], ["lens", "x", "--debug"]])
def test_debug_lets_the_error_through(folder, args):
    result = run(*args, "--model", folder, "--topk", "0")
    assert isinstance(result.exception, InputError)
    assert "gpt2kit: error" not in result.stderr


def test_debug_reaches_errors_in_options_before_it():
    assert isinstance(run("lens", "x", "--pos", "a", "--debug").exception, InputError)
    result = run("--debug", "export", "--model", "bundled", "--onnx", "a.txt")
    assert isinstance(result.exception, ExportError)


def test_a_bug_is_one_line_and_exits_70(folder, monkeypatch):
    def broken(*args, **options):
        raise ZeroDivisionError("oh\nno")

    monkeypatch.setattr("probes.lens.logit_lens.logit_lens", broken)
    result = run("lens", "x", "--model", folder)
    message = "unexpected ZeroDivisionError: oh no .--debug shows where"
    assert_one_line(result.exit_code, result.stdout, result.stderr, message, exit_code=70)
    assert isinstance(run("--debug", "lens", "x", "--model", folder).exception, ZeroDivisionError)


# Signals while a file is being written


def exporting(folder: str, *, until: str) -> subprocess.Popen:
    """A process of `gpt2kit export` that has begun a stage; it writes ./out.onnx."""
    command = [sys.executable, "-m", "gpt2kit.cli", "export", "--onnx", "out.onnx"]
    export = subprocess.Popen([*command, "--model", folder], stderr=subprocess.PIPE, text=True)
    for line in export.stderr:
        if line.startswith(until):
            return export
    raise AssertionError(f"no stage {until!r}")


@POSIX
@pytest.mark.slow
@pytest.mark.parametrize(
    ("stage", "name", "code"),
    [
        ("tracing", "SIGTERM", 143),
        ("tracing", "SIGHUP", 129),
        ("tracing", "SIGINT", 1),
        ("checking", "SIGTERM", 143),
    ],
)
def test_a_signal_leaves_no_draft(folder, tmp_path, stage, name, code):
    export = exporting(folder, until=stage)
    assert [file.name[:10] for file in tmp_path.iterdir()] == [".out.onnx."]
    export.send_signal(getattr(signal, name))
    _, stderr = export.communicate(timeout=60)
    assert export.returncode == code, stderr
    assert "Traceback" not in stderr
    assert list(tmp_path.iterdir()) == []


@POSIX
@pytest.mark.slow
def test_the_draft_of_a_killed_process_is_swept_and_that_of_a_live_one_is_not(folder, tmp_path):
    export = exporting(folder, until="tracing")
    export.send_signal(signal.SIGSTOP)
    sweep(tmp_path)
    assert len(list(tmp_path.iterdir())) == 1
    export.kill()
    export.communicate(timeout=60)
    assert len(list(tmp_path.iterdir())) == 1
    sweep(tmp_path)
    assert list(tmp_path.iterdir()) == []


@POSIX
def test_a_signal_that_is_ignored_stays_ignored():
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)  # as `nohup` does
    try:
        with raise_on_signals():
            os.kill(os.getpid(), signal.SIGHUP)
            with pytest.raises(SystemExit) as caught:
                os.kill(os.getpid(), signal.SIGTERM)
        assert caught.value.code == 143
        assert signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
        assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL
    finally:
        signal.signal(signal.SIGHUP, before)
