"""`--json` and `--csv` of every command that shows a result."""

import csv
import io
import json

import pytest
from click.testing import CliRunner

from gpt2kit.cli import main
from tests.gpt2kit.cli.support import PROBES, assert_one_line, run, succeeded

GENERATE = ["the ", "-n", "3", "--seed", "1"]
SHOWING = {name: [name, *args] for name, args in PROBES.items() if name != "facts"} | {
    "lens": ["lens", "the cat"],
    "generate": ["generate", *GENERATE],
    "generate --lens": ["generate", *GENERATE, "--lens"],
    "generate --edit": ["generate", *GENERATE, "--edit", "blocks.1.z = 0"],
}


@pytest.mark.parametrize("args", SHOWING.values(), ids=SHOWING)
def test_a_result_is_printed_as_json(folder, args):
    read = json.loads(succeeded(run(*args, "--json", "--model", folder)))
    if args[0] != "lens":  # whose JSON is that of its cells
        assert read["kind"]
        assert read["schema_version"] == 1
    assert read.get("source", read.get("model")) == "tiny"


@pytest.mark.parametrize("args", SHOWING.values(), ids=SHOWING)
def test_a_result_is_printed_as_csv(folder, args):
    text = succeeded(run(*args, "--csv", "--model", folder))
    rows = list(csv.DictReader(io.StringIO(text, newline="")))
    assert rows
    assert all(None not in row and None not in row.values() for row in rows)
    assert text.endswith("\n")
    assert not text.endswith("\n\n")


def test_heads_are_rows_with_all_scores(folder):
    rows = list(csv.DictReader(io.StringIO(succeeded(
        run("heads", "--length", "16", "--csv", "--model", folder)
    ))))  # fmt: skip
    assert [(row["layer"], row["head"]) for row in rows[:4]] == [
        ("0", "0"), ("0", "1"), ("0", "2"), ("1", "0")
    ]  # fmt: skip
    assert {"previous_token", "induction", "copying"} <= set(rows[0])


@pytest.mark.parametrize("args", SHOWING.values(), ids=SHOWING)
def test_both_at_once_is_bad_input(args):
    result = run(*args, "--json", "--csv")
    assert_one_line(result.exit_code, result.stdout, result.stderr, "choose one")


def test_every_command_with_a_model_has_both():
    for name in main.listed:
        options = {o for p in main.get_command(None, name).params for o in p.opts}
        assert ("--json" in options) == ("--csv" in options)
        assert ("--json" in options) == (name not in ("export", "taps", "doctor"))


def test_csv_is_utf8_whatever_the_terminal(folder):
    text = run("generate", "é", "-n", "1", "--csv", "--model", folder).stdout_bytes
    assert "é".encode() in text


@pytest.mark.parametrize(
    ("command", "options"),
    [
        ("inspect", ["--json"]),
        ("inspect", ["--csv"]),
        ("verify", ["--csv"]),
        ("bench", ["--csv", "--threads", "1"]),
    ],
)
def test_files_are_described_as_data(folder, onnx_file, command, options):
    model = {"verify": ["--model", folder]}.get(command, [])
    file = ["--onnx", onnx_file] if command == "bench" else [onnx_file]
    text = succeeded(run(command, *file, *model, *options))
    if options == ["--json"]:
        assert json.loads(text)["schema_version"] == 1
        return
    rows = list(csv.DictReader(io.StringIO(text, newline="")))
    assert rows
    assert all(None not in row and None not in row.values() for row in rows)


def test_a_terminal_of_no_width_gets_something():
    result = CliRunner().invoke(main, ["doctor"], env={"COLUMNS": "0"})
    assert result.stdout.strip()
