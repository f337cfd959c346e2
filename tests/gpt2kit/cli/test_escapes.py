"""No control character from a file or an argument reaches the terminal."""

import ast
import csv
import io
import json
import re
from pathlib import Path

import onnx
import pytest
from safetensors.torch import load_file, save_file

from gpt2kit.cli import terminal
from tests.gpt2kit.cli.support import POSIX, PROBES, process, run
from tests.test_layers import MODULES, ROOT, parsed

EVIL = "\x1b]0;title\x07\x9b31m\u202eabc\x7f"
CONTROL = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069]")
# The last one keeps a library from printing.
PRINTERS = {"gpt2kit/cli/terminal.py", "gpt2kit/notes.py", "gpt2kit/panics.py"}


def assert_safe(result) -> None:
    """Something evil was printed, and not as it was."""
    shown = result.stdout + result.stderr
    assert CONTROL.findall(shown) == []
    assert "title" in shown, shown


@pytest.fixture
def evil_folder(folder) -> Path:
    """A copy of the tiny checkpoint, in a folder with an evil name."""
    copy = Path(EVIL).resolve()
    copy.mkdir()
    for file in Path(folder).iterdir():
        (copy / file.name).write_bytes(file.read_bytes())
    return copy


def change_config(path: Path, **keys) -> None:
    config = json.loads((path / "config.json").read_text())
    (path / "config.json").write_text(json.dumps(config | keys))


def rename_tensor(path: Path) -> None:
    weights = load_file(path / "model.safetensors")
    weights[EVIL] = weights.pop("ln_f.bias")
    save_file(weights, path / "model.safetensors")


DAMAGE = {
    "config key": lambda path: change_config(path, **{EVIL: 1}),
    "config value": lambda path: change_config(path, activation_function=EVIL),
    "tensor name": rename_tensor,
    "index of shards": lambda path: [
        (path / "model.safetensors").unlink(),
        (path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": EVIL}})),
    ],
    "tokenizer": lambda path: (path / "tokenizer.json").write_text(json.dumps({EVIL: 1})),
}


@pytest.mark.parametrize("damage", DAMAGE.values(), ids=DAMAGE)
@pytest.mark.parametrize("command", ["lens", "generate"])
def test_an_error_about_a_file_shows_signs(evil_folder, damage, command):
    damage(evil_folder)
    result = run(command, "x", "--model", f"./{EVIL}")
    assert result.exit_code == 2
    assert_safe(result)


ARGUMENTS = [
    [EVIL],
    [f"--{EVIL}"],
    ["lens"] + [EVIL] * 2,
    ["lens", "x", "--model", f"./{EVIL}"],
    ["lens", "x", "--model", EVIL],
    ["lens", "x", "--onnx", EVIL],
    ["lens", "x", "--device", EVIL],
    ["lens", "x", "--dtype", EVIL],
    ["lens", "x", "--topk", EVIL],
    ["lens", "x", "--pos", EVIL],
    ["lens", "x", "--model", "bundled", "--target", EVIL],
    ["generate", "x", "--model", "bundled", "--edit", EVIL],
    ["generate", "x", "--model", "bundled", "--edit", f"ln_f += {EVIL}.npy"],
    ["inspect", EVIL],
    ["verify", EVIL],
    ["export", "--onnx", EVIL],
]


@pytest.mark.parametrize("args", ARGUMENTS, ids=lambda args: " ".join(args).replace(EVIL, "EVIL"))
def test_an_error_about_an_argument_shows_signs(args, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    result = run(*args)
    assert result.exit_code == 2
    assert_safe(result)


TEXTS = {name: [name, *args] for name, args in PROBES.items() if name not in ("facts", "heads")} | {
    "heads": ["heads", "--prompt", "the cat"],
    "lens": ["lens", "the cat", "--topk", "3"],
    "generate": ["generate", "the cat", "-n", "2"],
    "generate --lens": ["generate", "the cat", "-n", "2", "--lens"],
    "generate --edit": ["generate", "the cat", "-n", "2", "--edit", "blocks.1.z = 0"],
}


def evil_command(name: str, folder: Path) -> list[str]:
    return [arg.replace("the ", EVIL) for arg in TEXTS[name]] + ["--model", str(folder)]


@pytest.mark.parametrize("command", TEXTS)
def test_tokens_and_names_show_signs(evil_folder, command):
    """The prompt's tokens and the model's name are evil."""
    result = run(*evil_command(command, evil_folder))
    assert result.exit_code == 0, result.output
    assert_safe(result)


@pytest.mark.parametrize("prompts", [["a"], ["a", "b"]], ids=["stream", "batch"])
def test_generated_text_shows_signs_and_keeps_its_lines(folder, prompts):
    any_byte = ["-n", "39", "--temperature", "1e6", "--top-k", "261", "--seed", "16"]
    result = run("generate", *prompts, *any_byte, "--model", folder)
    assert result.exit_code == 0
    assert CONTROL.findall(result.stdout) == []
    assert "␛" in result.stdout
    assert any("\n" in text for text in result.stdout.strip().split("\n\n"))


def test_metadata_shows_signs(onnx_file):
    model = onnx.load(onnx_file)
    for entry in model.metadata_props:
        if entry.key == "gpt2kit.model":
            entry.value = EVIL
    onnx.save(model, "evil.onnx")
    result = run("inspect", "evil.onnx")
    assert result.exit_code == 0
    assert_safe(result)


@POSIX
@pytest.mark.slow
def test_a_traceback_shows_signs():
    done = process("lens", "x", "--model", f"./{EVIL}", "--debug", text=True, encoding="utf-8")
    assert done.stderr.startswith("Traceback")
    assert "CheckpointError" in done.stderr
    assert_safe(done)


@pytest.mark.parametrize("command", TEXTS)
def test_json_escapes_and_csv_keeps(evil_folder, command):
    """JSON is safe as it is printed; CSV has no escapes, and a pipe gets the data unchanged."""
    args = evil_command(command, evil_folder)
    text = run(*args, "--json").stdout
    assert CONTROL.findall(text) == []
    if command != "lens":  # whose JSON is that of its cells
        assert EVIL in json.loads(text)["source"]
    rows = list(csv.reader(io.StringIO(run(*args, "--csv").stdout_bytes.decode(), newline="")))
    assert len({len(row) for row in rows}) == 1


def test_csv_for_a_terminal_shows_signs(monkeypatch, capsysbinary):
    terminal.write_csv(f"a\n{EVIL}\n")
    assert capsysbinary.readouterr().out == f"a\n{EVIL}\n".encode()
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    terminal.write_csv(f"a\n{EVIL}\n")
    shown = capsysbinary.readouterr().out.decode()
    assert shown.startswith("a\n␛]0;title")
    assert CONTROL.findall(shown) == []


def test_markup_of_rich_is_text(capsys):
    terminal.print_rich("[red]a[/b] :smile:")
    assert capsys.readouterr().out == "[red]a[/b] :smile:\n"


def test_a_printed_result_shows_signs(evil_folder):
    import gpt2kit
    from probes import logit_lens

    shown = str(logit_lens(gpt2kit.load(evil_folder), EVIL))
    assert CONTROL.findall(shown) == []


def prints(node: ast.AST) -> bool:
    """Whether this writes to the terminal itself, or may: it uses a standard stream."""
    if isinstance(node, ast.Attribute):
        return ast.unparse(node) in ("sys.stdout", "sys.stderr")
    if not isinstance(node, ast.Call):
        return False
    name = ast.unparse(node.func)
    to_string = any(keyword.arg == "file" for keyword in node.keywords)
    printer = name in ("print", "pprint", "click.echo", "click.secho")
    return printer or (name.endswith("Console") and not to_string)


def test_nothing_else_prints():
    printers = {
        str(file.relative_to(ROOT))
        for file in MODULES.values()
        if any(map(prints, ast.walk(parsed(file))))
    }
    assert printers == PRINTERS
