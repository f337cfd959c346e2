"""What README and docs/ show runs in an empty folder, on the model that needs no network."""

import re
import shlex
from pathlib import Path

import pytest
from click.testing import CliRunner

from gpt2kit.cli import main

ROOT = Path(__file__).parents[1]
PAGES = {
    file.relative_to(ROOT).as_posix(): file.read_text(encoding="utf-8")
    for file in (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")))
}
OUR = ("gpt2kit", "python", "mkdir")  # programs whose lines are run here
INSTALL = ("git", "make", "source", "pip")  # those of sections on installing and developing


def blocks(page: str) -> list[tuple[str, str]]:
    """(language, code), in order; a line of shell that ends in a backslash goes on."""
    found = re.findall(r"```(sh|python)\n(.*?)```", PAGES[page], re.DOTALL)
    return [(language, code.replace("\\\n", " ")) for language, code in found]


def lines(page: str) -> list[str]:
    """Commands, without those that install."""
    codes = [code for language, code in blocks(page) if language == "sh"]
    return [line for code in codes for line in code.splitlines() if line and line.split()[0] in OUR]


def needs_file(code: str) -> bool:
    """Whether it writes or reads an exported file, which takes its time."""
    return "out/" in code


COMMANDS = [line for page in PAGES for line in lines(page) if not needs_file(line)]


@pytest.fixture(scope="module", autouse=True)
def _elsewhere(tmp_path_factory):
    """One empty folder for all."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path_factory.mktemp("readme"))
        yield


def run_line(line: str) -> None:
    program, *args = shlex.split(line, comments=True)
    if program == "mkdir":
        Path(args[-1]).mkdir(exist_ok=True)
        return
    if program == "python":
        assert args[0] == "-c"
        exec(args[1], {})
        return
    if ">" in args:
        args = args[: args.index(">")]
    exporting = args[:1] == ["export"]
    command = main.get_command(None, args[0]) if args else main
    takes_model = any(parameter.name == "model" for parameter in command.params)
    named = "--model" in args or ("--onnx" in args and not exporting) or args[:1] == ["verify"]
    options = ["--model", "bundled"] if takes_model and not named else []  # as `auto` offline
    result = CliRunner().invoke(main, [*args, *options])
    stderr = "" if exporting else result.stderr  # an export tells its stages there
    assert (program, result.exit_code, stderr) == ("gpt2kit", 0, ""), result.output
    assert result.stdout.strip() or exporting


def test_every_page_is_there():
    assert {"README.md", "docs/probes.md", "docs/edits.md", "docs/export.md"} <= set(PAGES)
    assert len(COMMANDS) > 25
    shells = [code for page in PAGES for language, code in blocks(page) if language == "sh"]
    programs = {line.split()[0] for code in shells for line in code.splitlines() if line}
    assert programs <= {*OUR, *INSTALL, "#"} | {".venv/bin/python"}
    named = {word for line in COMMANDS for word in line.split()[1:2]}
    assert named >= {"lens", "generate", "heads", "attn", "attribute", "patch", "ablate"}


@pytest.mark.parametrize("line", dict.fromkeys(COMMANDS))
def test_a_command_runs(line):
    run_line(line)


def run_python(page: str, names: dict[str, object]) -> None:
    for language, code in blocks(page):
        if language == "python" and not needs_file(code):
            exec(compile(code, page, "exec"), names)


@pytest.mark.parametrize("page", [page for page in PAGES if "```python" in PAGES[page]])
def test_the_python_runs(page, capsys):
    run_python(page, {})
    shown = capsys.readouterr().out
    if page == "docs/probes.md":
        for what in ("logit lens", "what heads look at", "direct logit attribution"):
            assert what in shown
    if page in ("README.md", "docs/probes.md"):
        assert "logit lens" in shown
        assert "activation patc" in shown


@pytest.mark.slow
def test_files_are_exported_and_run():
    """Each line once, page by page; what only quantised files need is parsed alone."""
    done = set()
    for page in PAGES:
        names: dict[str, object] = {}
        for language, code in blocks(page):
            if language == "python" and needs_file(code):
                exec(compile(code, page, "exec"), names)
            for line in code.splitlines() if language == "sh" else ():
                if (not needs_file(line) and not line.startswith("mkdir")) or line in done:
                    continue
                done.add(line)
                if "int8" in line:  # their export is tested with the quantiser
                    parse(line)
                else:
                    run_line(line)
    assert len(done) > 6


def parse(line: str) -> None:
    """Read the options of a command, without running it."""
    name, *args = shlex.split(line, comments=True)[1:]
    main.get_command(None, name).make_context(name, args)


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_somewhere(page):
    here = (ROOT / page).parent
    for target in re.findall(r"\]\(([^)#]+)", PAGES[page]):
        assert target.startswith("https://") or (here / target).exists(), target


def test_the_picture_is_a_lens():
    svg = (ROOT / "docs" / "lens.svg").read_text(encoding="utf-8")
    assert "docs/lens.svg" in PAGES["README.md"]
    assert "logit&#160;lens" in svg
    assert "http" not in svg.replace("http://www.w3.org", "").replace("https://www.textualize", "")


def test_the_architecture_names_every_room():
    text = PAGES["docs/architecture.md"]
    folders = {
        file.parent.relative_to(ROOT).as_posix()
        for package in ("gpt2kit", "exporters", "probes")
        for file in (ROOT / package).rglob("*.py")
    }
    assert [room for room in sorted(folders) if f"`{room}/`" not in text] == []


@pytest.mark.parametrize("page", ["docs/architecture.md", "CONTRIBUTING.md"])
def test_every_file_that_is_named_exists(page):
    text = (ROOT / page).read_text(encoding="utf-8")
    named = re.findall(r"`((?:gpt2kit|exporters|probes|tests|tools|docs)/[\w/.]*)`", text)
    assert len(named) > 5
    assert [file for file in named if not (ROOT / file).exists()] == []
