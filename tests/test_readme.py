"""What README shows of the probes runs in an empty folder, on the model that needs no network."""

import re
import shlex
from pathlib import Path

import pytest
from click.testing import CliRunner

from gpt2kit.cli import main

README = (Path(__file__).parents[1] / "README.md").read_text(encoding="utf-8")
SECTIONS = ("First results", "Look inside", "Change it", "Logit lens", "Probes")


def blocks(language: str) -> list[tuple[str, str]]:
    """(section, code) of the sections above."""
    parts = (part.partition("\n") for part in README.split("\n## "))
    return [
        (title, code)
        for title, _, text in parts
        if title.startswith(SECTIONS)
        for code in re.findall(rf"```{language}\n(.*?)```", text, re.DOTALL)
    ]


COMMANDS = [
    line
    for title, code in blocks("sh")
    if not title.startswith("First results")  # whose export takes its time
    for line in code.splitlines()
    if line
]


@pytest.fixture(scope="module", autouse=True)
def _elsewhere(tmp_path_factory):
    """One empty folder for all."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path_factory.mktemp("readme"))
        yield


def test_every_section_is_there():
    titles = [title for language in ("sh", "python") for title, _ in blocks(language)]
    assert all(any(title.startswith(section) for title in titles) for section in SECTIONS)
    assert len(COMMANDS) > 15


@pytest.mark.parametrize("line", COMMANDS)
def test_a_command_runs(line):
    program, *args = shlex.split(line, comments=True)
    if program == "python":
        exec(args[1], {})
        return
    if ">" in args:
        args = args[: args.index(">")]
    named = [] if "--model" in args else ["--model", "bundled"]  # as `auto` without a network
    result = CliRunner().invoke(main, [*args, *named])
    assert (program, result.exit_code, result.stderr) == ("gpt2kit", 0, ""), result.output
    assert result.stdout.strip()


def test_the_python_runs(capsys):
    names: dict[str, object] = {}
    for title, code in blocks("python"):
        exec(compile(code, title, "exec"), names)
    shown = capsys.readouterr().out
    for what in ("logit lens", "what heads look at", "direct logit attribution", "activation patc"):
        assert what in shown
