"""`gpt2kit generate` with --lens and with --edit."""

import pytest
from click.testing import CliRunner

from gpt2kit.cli import main


def generated(*arguments):
    return CliRunner().invoke(main, ["generate", "--model", "bundled", *arguments])


def test_the_command_shows_each_token_and_then_the_text():
    result = generated("Once upon a time", "--lens", "--greedy", "-n", "5")
    assert result.exit_code == 0, result.output
    lines = result.stdout.splitlines()
    assert lines[0].startswith("token")
    assert sum("layer" in line and line.endswith("%") for line in lines[2:7]) >= 4
    assert lines[-1].startswith("Once upon a time")


def test_the_command_shows_both_texts():
    result = generated("Once upon a time", "--edit", "blocks.0.attn_out *= 0", "-n", "5")
    assert result.exit_code == 0, result.output
    for words in ("text, without", "text, with", "next, without", "KL(without || with)"):
        assert words in result.stdout


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("a", "b", "--lens"), "take one prompt at a time"),
        (("a", "--edit", "nonsense"), "'nonsense' is not an edit"),
        (("a", "--edit", "blocks.77.z = 0"), "the model has layers 0 to 7"),
        (("a", "--edit", "blocks.0.z[head=9] = 0"), "head = 9 is out of range"),
        (("", "--lens"), "the prompt is empty"),
    ],
)
def test_the_command_refuses_in_one_line(arguments, words):
    result = generated(*arguments)
    assert (result.exit_code, result.stdout) == (2, "")
    assert words in result.stderr
    assert result.stderr.count("\n") == 1
