"""The `gpt2kit` command: what it prints, what it refuses, and that it never shows a traceback."""

import csv
import io
import json
import os
import re
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import onnx
import pytest
import safetensors.torch
import torch
from click.testing import CliRunner, Result
from onnx import numpy_helper

import gpt2kit
from exporters import OnnxRunner
from exporters import export as onnx_export
from exporters.parity import compare as parity
from gpt2kit.cli import main
from gpt2kit.errors import ExportError, InputError
from probes import logit_lens
from tests.conftest import CONFIG, byte_tokenizer, write_checkpoint

LOADING = ["generate x", "lens x", "export --onnx out.onnx"]
COMMANDS = ["generate", "lens", "export", "verify", "taps", "doctor"]
POSIX = pytest.mark.skipif(sys.platform == "win32", reason="needs POSIX signals and pipes")


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path, monkeypatch):
    """Every command runs in an empty folder."""
    monkeypatch.chdir(tmp_path)


@pytest.fixture(scope="session")
def folder(tmp_path_factory) -> str:
    """A checkpoint in Hugging Face layout: the weights of `torch_runner`."""
    path = tmp_path_factory.mktemp("cli") / "tiny"
    write_checkpoint(path)
    (path / "tokenizer.json").write_text(byte_tokenizer().to_json())
    return str(path)


@pytest.fixture
def onnx_file(onnx_runner) -> str:
    return str(onnx_runner.path)


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


# Help


def test_help_needs_neither_torch_nor_onnxruntime():
    heavy = "{'torch', 'onnxruntime', 'onnx', 'numpy', 'rich', 'tokenizers'}"
    script = (
        "import sys; from gpt2kit.cli import main\n"
        f"for command in {[[], *([c] for c in COMMANDS)]}:\n"
        "    main([*command, '--help'], standalone_mode=False)\n"
        f"print(sorted({heavy} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.stdout.splitlines()[-1] == "[]", done.stderr
    assert all(command in done.stdout for command in COMMANDS)


def test_the_version_is_that_of_the_package():
    assert gpt2kit.__version__ in succeeded(run("--version"))


@pytest.mark.parametrize(
    "args", [["nonsense"], ["lens"], ["generate"], ["lens", "a", "b"], ["export"], ["lens", "--x"]]
)
def test_wrong_usage_exits_2(args):
    result = run(*args)
    assert result.exit_code == 2
    assert "Usage:" in result.stderr


# Generate


@pytest.mark.parametrize("options", [{"greedy": True}, {"seed": 3, "top_p": 0.9}, {"seed": 0}])
def test_streamed_text_is_that_of_the_library(folder, options):
    prompt, args = "the é", []
    for name, value in options.items():
        args += [f"--{name.replace('_', '-')}", *([] if value is True else [str(value)])]
    out = succeeded(run("generate", prompt, "--model", folder, "-n", "30", *args))
    text = gpt2kit.generate(gpt2kit.load(folder), prompt, max_new_tokens=30, **options)
    assert out == f"{prompt}{text}\n"


def test_an_exported_file_generates_the_same(folder, onnx_file):
    args = ["generate", "the ", "-n", "20", "--greedy"]
    assert succeeded(run(*args, "--onnx", onnx_file)) == succeeded(run(*args, "--model", folder))


def test_several_prompts_are_one_batch(folder):
    out = succeeded(run("generate", "a", "the hat", "-n", "5", "--greedy", "--model", folder))
    texts = gpt2kit.generate(gpt2kit.load(folder), ["a", "the hat"], max_new_tokens=5, greedy=True)
    assert out == f"a{texts[0]}\n\nthe hat{texts[1]}\n\n"


def test_it_stops_before_a_stop_string(folder):
    args = ["generate", "the ", "-n", "20", "--greedy", "--model", folder]
    text = succeeded(run(*args)).removesuffix("\n")
    stop = text[10:12]
    assert succeeded(run(*args, "--stop", stop)) == f"{text[: text.index(stop, 4)]}\n"


def test_a_dash_reads_standard_input(folder):
    args = ["--model", folder, "-n", "3", "--greedy"]
    from_stdin = succeeded(run("generate", "-", *args, stdin="héllo".encode()))
    assert from_stdin == succeeded(run("generate", "héllo", *args))


# Lens


def test_the_grid_is_printed(folder, onnx_file):
    torch_grid = succeeded(run("lens", "the cat", "--model", folder, "--topk", "2"))
    assert "logit lens  tiny  float32  5 tokens, no BOS added" in torch_grid
    assert torch_grid.count("\nfinal") == 1
    onnx_grid = succeeded(run("lens", "the cat", "--onnx", onnx_file, "--topk", "2"))
    assert onnx_grid.split("\n")[1:] == torch_grid.split("\n")[1:]  # the name differs


def test_json_and_csv_are_data(folder):
    args = ["lens", "the é", "--model", folder, "--topk", "3", "--pos", "-2:", "--target", "t"]
    read = json.loads(succeeded(run(*args, "--json")))
    lens = logit_lens(gpt2kit.load(folder), "the é", top_k=3)
    assert read["ids"] == lens.prompt_ids.tolist()
    assert {cell["position"] for cell in read["cells"]} == {
        len(read["ids"]) - 2,
        len(read["ids"]) - 1,
    }
    assert read["cells"][-1]["top"][2]["id"] == lens.top_ids[-1, -1, 2]
    rows = list(csv.DictReader(io.StringIO(succeeded(run(*args, "--csv")), newline="")))
    assert len(rows) == len(read["cells"])
    assert float(rows[-1]["kl"]) == read["cells"][-1]["kl"]
    assert int(rows[0]["target1_rank"]) == read["cells"][0]["targets"][0]["rank"]


@pytest.mark.parametrize("args", [["--by", "kl"], ["--bos"], ["--sites", "attn"], ["--pos", "0,2"]])
def test_every_option_of_the_grid_works(folder, args):
    assert "final" in succeeded(run("lens", "the cat", "--model", folder, *args))


def test_a_target_and_its_foil(folder):
    args = ["lens", "the cat", "--model", folder, "--target", "a"]
    assert "probability of 'a'" in succeeded(run(*args))
    assert "logit of 'a' minus logit of 'b'" in succeeded(run(*args, "--foil", "b"))


# Taps, export, verify


def test_taps_are_listed(folder):
    out = succeeded(run("taps"))
    assert re.search(r"blocks\.\{i\}\.pattern +batch head query key", out)


@pytest.fixture
def no_trace(monkeypatch):
    """An export, without the seconds that it takes."""

    def export(runner, path, *, taps, on_progress, **options):
        assert taps == ("*",)
        on_progress("tracing")
        return report

    report = parity.Report("float32", 1e-4, ("decode",), {"logits": (1e-6, "decode")}, 9, 9, 0)
    monkeypatch.setattr(onnx_export, "export_onnx", export)


def test_export_says_how_well_it_agrees_and_where_it_wrote(no_trace, folder):
    result = run("export", "--onnx", "a[red]b.onnx", "--model", folder, "--taps", "*")
    assert (result.exit_code, result.stderr) == (0, "tracing …\n")
    assert "torch and ONNX agree (tolerance 1e-04 for float32)" in result.stdout
    assert result.stdout.endswith("wrote a[red]b.onnx\n")


def test_verify_passes_and_fails(folder, onnx_file, tmp_path):
    assert "torch and ONNX agree" in succeeded(run("verify", onnx_file, "--model", folder))
    read = json.loads(succeeded(run("verify", onnx_file, "--model", folder, "--json")))
    assert read["passed"] is True
    model = onnx.load(onnx_file)
    (weight,) = (w for w in model.graph.initializer if w.name == "h.1.mlp.c_fc.bias")
    weight.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(weight) + 1, weight.name))
    Path("wrong.onnx").write_bytes(model.SerializeToString())
    result = run("verify", "wrong.onnx", "--model", folder)
    assert "they do not agree" in result.stdout
    assert "they part first at blocks.1.mlp_pre" in result.stdout
    assert_one_line(result.exit_code, "", result.stderr, "part at blocks.1.mlp_pre in", exit_code=1)
    result = run("verify", "wrong.onnx", "--model", folder, "--json")
    assert (result.exit_code, json.loads(result.stdout)["diverged"]) == (1, "blocks.1.mlp_pre")


def test_a_failed_gate_exits_1_and_leaves_nothing(folder, monkeypatch):
    failed = parity.Report("float32", 1e-4, ("decode",), {"logits": (1.0, "decode")}, 0, 1, 0)
    monkeypatch.setattr(onnx_export, "trace", lambda *_: None)
    monkeypatch.setattr(onnx_export, "describe", lambda *_: None)
    monkeypatch.setattr(onnx_export, "_save", lambda _, path, __: path.write_bytes(b"x"))
    monkeypatch.setattr(onnx_export, "check", lambda *_: failed)
    result = run("export", "--onnx", "out.onnx", "--model", folder)
    assert (result.exit_code, result.stdout) == (1, "")
    assert result.stderr.splitlines()[-1].startswith(
        "gpt2kit: error: torch and ONNX part at logits"
    )
    assert list(Path().iterdir()) == []


# Bad input

LONG = "x" * (CONFIG.n_positions + 1)
FULL = "x" * CONFIG.n_positions
BROKEN = {  # checkpoint folders that reading the weights finds wrong
    "config-only": "no weights; expected one of model.safetensors",
    "truncated": "not a whole safetensors file",
    "misshapen": r"has shape \(261, 24\), config.json asks for \(261, 48\)",
    "nan": "holds NaN or infinite values",
    "pickled": "refused, it is damaged or holds code",
}
WRONG = {  # what is found wrong before
    "bundled --revision main": "only hub ids have one",
    "./nothing": "no such folder",
    "/nothing/here": "no such folder",
    "empty": "no config.json",
    "other": "model_type is 'llama'",
    "unknown-key": "rope_theta = 3 is unknown",
    "y" * 5000: "File name too long|cannot be downloaded",
}


class Code:
    def __reduce__(self):
        return os.system, ("touch pwned",)


@pytest.fixture
def bad_models(folder):
    """Folders that each lack something."""
    config = json.loads(Path(folder, "config.json").read_text())
    changes = {"other": {"model_type": "llama"}, "unknown-key": {"rope_theta": 3}}
    changes["misshapen"] = {"n_embd": 48}
    Path("empty").mkdir()
    for name in [*BROKEN, "other", "unknown-key"]:
        Path(name).mkdir()
        Path(name, "config.json").write_text(json.dumps(config | changes.get(name, {})))
    weights = Path(folder, "model.safetensors").read_bytes()
    Path("misshapen", "model.safetensors").write_bytes(weights)
    Path("truncated", "model.safetensors").write_bytes(weights[:-9])
    tensors = safetensors.torch.load(weights)
    tensors["ln_f.bias"][1] = float("nan")
    safetensors.torch.save_file(tensors, "nan/model.safetensors")
    torch.save({"wte.weight": Code()}, "pickled/pytorch_model.bin")


@pytest.mark.parametrize(
    ("command", "name"),
    [(command, name) for command in LOADING for name in WRONG | BROKEN],
    ids=lambda text: text[:20],
)
def test_a_bad_model_is_one_line(bad_models, command, name):
    before = sorted(Path().rglob("*"))
    result = run(*command.split(), "--model", *name.split())
    message = (WRONG | BROKEN)[name]
    assert_one_line(result.exit_code, result.stdout, result.stderr, message)
    assert sorted(Path().rglob("*")) == before  # no file, and the pickle's code has not run


BAD_GENERATE = [
    ([""], "the prompt is empty"),
    (["a", ""], "the prompt is empty"),
    ([LONG], "the prompt has 41 tokens, the context holds 40; shorten it"),
    ([FULL], "40 prompt tokens and 40 new ones need 79 positions"),
    (["x", "-n", "41"], "1 prompt tokens and 41 new ones need 41 positions"),
    (["x", "-n", "0"], "must be at least 1"),
    (["x", "--temperature", "0"], "temperature = 0.0 must be above 0"),
    (["x", "--temperature", "-1"], "must be above 0"),
    (["x", "--temperature", "nan"], "must be above 0"),
    (["x", "--temperature", "inf"], "must be above 0"),
    (["x", "--top-k", "0"], "top_k = 0 must be at least 1"),
    (["x", "--top-k", "9999"], "top_k = 9999 is more than the vocabulary"),
    (["x", "--top-p", "0"], r"must be in \(0, 1\]"),
    (["x", "--top-p", "1.5"], r"must be in \(0, 1\]"),
    (["x", "--seed", "-1"], "must not be negative"),
    (["x", "--stop", ""], "a stop string is empty"),
    (["x", "--device", "abacus"], "'abacus' is not one that torch knows"),
    (["x", "--dtype", "int8"], "'int8' is not one of float32"),
    (["a\udcffb"], "the prompt is not UTF-8"),
]
BAD_LENS = [
    ([""], "the prompt is empty"),
    ([LONG], "the context holds 40"),
    ([FULL, "--bos"], "do not fit the context of 40"),
    (["x", "--topk", "0"], "must be from 1"),
    (["x", "--topk", "-1"], "must be from 1"),
    (["x", "--topk", "9999"], "must be from 1"),
    (["x", "--by", "colour"], "--by 'colour' is not one of prob, logit"),
    (["x", "--sites", "heads"], "not one of resid, mid, attn, mlp"),
    (["x", "--pos", "9"], "positions \\[9\\] are not among the 1"),
    (["x", "--pos", "a"], "is not like 3, -1"),
    (["x", "--pos", ""], "is not like 3, -1"),
    (["x", "--pos", "1:2:3:4"], "is not like 3, -1"),
    (["x", "--pos", "::0"], "positions"),
    (["x", "--pos", "4:2"], "select none of"),
    (["x", "--target", "two tokens"], "is not one token"),
    (["x", "--target", "a\udcff"], "not UTF-8"),
    (["x", "--foil", "a"], "--foil needs a --target"),
    (["x", "--json", "--csv"], "choose one"),
    (["\udcff"], "the prompt is not UTF-8"),
]


@pytest.mark.parametrize(("args", "message"), BAD_GENERATE)
def test_generate_refuses_in_one_line(folder, args, message):
    result = run("generate", "--model", folder, *args)
    assert_one_line(result.exit_code, result.stdout, result.stderr, message)


@pytest.mark.parametrize(("args", "message"), BAD_LENS)
def test_lens_refuses_in_one_line(folder, args, message):
    result = run("lens", "--model", folder, *args)
    assert_one_line(result.exit_code, result.stdout, result.stderr, message)


@pytest.mark.parametrize("command", ["generate", "lens"])
def test_standard_input_must_be_utf8_and_hold_something(folder, command):
    for stdin, message in (
        (b"ab\xff\xfe", r"standard input is not UTF-8 \(byte 2\)"),
        (b"", "empty"),
    ):
        result = run(command, "-", "--model", folder, stdin=stdin)
        assert_one_line(result.exit_code, result.stdout, result.stderr, message)


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["out.onnx", "--taps", "blocks.3.z"], "the model has layers 0 to 2"),
        (["out.onnx", "--taps", "blocks.0.zz"], r"did you mean 'blocks\.0\.z'"),
        (["out.onnx", "--dtype", "float64"], "not one of float32, float16, bfloat16"),
        (["out.onnx", "--opset", "17"], "opset 17 is not from 18 to 24"),
        (["out.bin"], r"ends in \.onnx"),
        (["none/out.onnx"], "does not exist"),
        (["file/out.onnx"], "does not exist"),
        (["folder.onnx"], "is a folder"),
        ([f"{'z' * 300}.onnx"], "too long"),
    ],
)
def test_export_refuses_in_one_line(folder, args, message):
    Path("folder.onnx").mkdir()
    Path("file").touch()
    result = run("export", "--model", folder, "--onnx", *args)
    assert_one_line(result.exit_code, result.stdout, result.stderr, message)
    assert {entry.name for entry in Path().iterdir()} == {"file", "folder.onnx"}


def test_an_unwritable_folder_is_one_line(folder, monkeypatch):
    monkeypatch.setattr(os, "access", lambda *_: False)
    result = run("export", "--model", folder, "--onnx", "out.onnx")
    assert_one_line(result.exit_code, result.stdout, result.stderr, "cannot be written to")


@pytest.mark.parametrize("command", ["verify", "generate x --onnx", "lens x --onnx"])
@pytest.mark.parametrize(
    ("file", "message"),
    [
        ("none.onnx", "no such file"),
        (".", "is a folder"),
        ("text.onnx", "not an ONNX file"),
        ("empty.onnx", "not an ONNX file"),
        ("z" * 5000, "too long"),
    ],
)
def test_a_bad_onnx_file_is_one_line(command, file, message):
    Path("text.onnx").write_text("hello")
    Path("empty.onnx").touch()
    result = run(*command.split(), file)
    assert_one_line(result.exit_code, result.stdout, result.stderr, message)


@pytest.mark.parametrize(
    "option", [["--model", "bundled"], ["--revision", "x"], ["--dtype", "float32"]]
)
@pytest.mark.parametrize("command", ["generate", "lens"])
def test_a_file_and_a_model_do_not_go_together(onnx_file, command, option):
    result = run(command, "x", "--onnx", onnx_file, *option)
    assert_one_line(result.exit_code, result.stdout, result.stderr, f"{option[0]} does not go with")


def test_a_file_without_the_taps_of_a_lens_says_how_to_export_them(onnx_file, monkeypatch):
    init = OnnxRunner.__init__

    def without_taps(self, *args):
        init(self, *args)
        self.taps = ()

    monkeypatch.setattr(OnnxRunner, "__init__", without_taps)
    result = run("lens", "x", "--onnx", onnx_file)
    advice = r"--taps 'blocks\.0\.resid_pre' --taps 'blocks\.\*\.resid_post'`$"
    assert_one_line(result.exit_code, result.stdout, result.stderr, advice)


def test_verify_refuses_other_weights(onnx_file, tmp_path):
    write_checkpoint(tmp_path / "other", replace(CONFIG, n_layer=2))
    result = run("verify", onnx_file, "--model", "./other")
    assert_one_line(result.exit_code, result.stdout, result.stderr, "made from other weights")


@pytest.mark.parametrize("args", [["--debug", "lens", "x"], ["lens", "x", "--debug"]])
def test_debug_lets_the_error_through(folder, args):
    result = run(*args, "--model", folder, "--topk", "0")
    assert isinstance(result.exception, InputError)
    assert "gpt2kit: error" not in result.stderr


def test_debug_reaches_errors_in_options_before_it():
    assert isinstance(run("lens", "x", "--pos", "a", "--debug").exception, InputError)
    result = run("--debug", "export", "--model", "bundled", "--onnx", "a.txt")
    assert isinstance(result.exception, ExportError)


# The bundled model


def test_every_light_command_runs_on_the_bundled_model():
    assert succeeded(run("generate", "The king", "-n", "5", "--model", "bundled")).startswith(
        "The king"
    )
    assert "logit lens  bundled" in succeeded(run("lens", "The king", "--model", "bundled"))
    assert "resid_post" in succeeded(run("taps"))
    assert "bundled model" in succeeded(run("doctor"))


@pytest.mark.slow
def test_the_bundled_model_exports_verifies_and_runs():
    result = run("export", "--onnx", "b.onnx", "--model", "bundled", "--taps", "blocks.*.resid_p*")
    assert result.exit_code == 0, result.output
    assert [line for line in result.stderr.splitlines() if "…" not in line] == []
    assert "agree" in succeeded(run("verify", "b.onnx"))
    args = ["generate", "The king", "-n", "30", "--seed", "1"]
    assert succeeded(run(*args, "--onnx", "b.onnx")) == succeeded(run(*args, "--model", "bundled"))
    assert succeeded(run("lens", "The king", "--onnx", "b.onnx")) == (
        succeeded(run("lens", "The king", "--model", "bundled"))
    )


# As a real process


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


@pytest.mark.slow
def test_debug_shows_the_traceback_and_the_message(folder):
    done = process("lens", "x", "--model", folder, "--topk", "0", "--debug", text=True)
    assert done.returncode not in (0, None)
    assert done.stderr.startswith("Traceback")
    assert "top_k = 0 must be from 1" in done.stderr.splitlines()[-1]


OFFLINE = {"HF_HUB_OFFLINE": "1", "PYTHONUTF8": "1"}


@pytest.mark.parametrize(
    "args", [["nobody/nothing"], ["gpt2", "--revision", "none"], ["not a name!"]]
)
def test_a_model_that_cannot_be_had_is_one_line(tmp_path, args):
    environment = os.environ | OFFLINE | {"HF_HOME": str(tmp_path / "hub")}
    done = process("generate", "x", "--model", *args, text=True, env=environment)
    assert_one_line(done.returncode, done.stdout, done.stderr, re.escape(args[0]))


def test_auto_falls_back_to_the_bundled_model_and_says_so(tmp_path):
    environment = os.environ | OFFLINE | {"HF_HOME": str(tmp_path / "hub")}
    done = process("lens", "The king", text=True, encoding="utf-8", env=environment)
    assert done.returncode == 0
    assert "logit lens  bundled" in done.stdout
    (warning,) = done.stderr.splitlines()
    assert "using the small bundled model" in warning
    assert "--model" in warning


def test_a_terminal_without_unicode_shows_what_it_can(folder):
    latin_only = os.environ | {"PYTHONIOENCODING": "latin-1", "PYTHONUTF8": "0"}
    done = process("lens", "thé", "--model", folder, env=latin_only)
    assert (done.returncode, done.stderr) == (0, b"")
    assert b"final" in done.stdout
    done = process("lens", "thé", "--model", folder, "--json", env=latin_only)
    ids = byte_tokenizer().encode("thé")
    assert json.loads(done.stdout.decode("utf-8"))["tokens"] == byte_tokenizer().tokens(ids)


def test_a_bug_is_one_line_too(folder, monkeypatch):
    def broken(*args, **options):
        raise ZeroDivisionError("oh\nno")

    monkeypatch.setattr("probes.lens.logit_lens.logit_lens", broken)
    result = run("lens", "x", "--model", folder)
    message = "unexpected ZeroDivisionError: oh no .--debug shows where"
    assert_one_line(result.exit_code, result.stdout, result.stderr, message)
    assert isinstance(run("--debug", "lens", "x", "--model", folder).exception, ZeroDivisionError)
