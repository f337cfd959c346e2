"""Help, completion and wrong usage: what a newcomer sees first."""

import re
import shlex
import subprocess
import sys

import click
import pytest
from click.shell_completion import BashComplete
from click.testing import CliRunner

import gpt2kit
from gpt2kit.cli import choices, main
from gpt2kit.cli.group import ExampleCommand
from tests.gpt2kit.cli.support import assert_one_line, process, run, succeeded

NAMES = list(main.listed)
COMMANDS = {name: main.get_command(click.Context(main), name) for name in NAMES}


def test_help_imports_nothing_heavy():
    heavy = "{'torch', 'onnxruntime', 'onnx', 'numpy', 'rich', 'tokenizers', 'probes'}"
    script = (
        "import sys; from gpt2kit.cli import main\n"
        f"for command in {[[], *([name] for name in NAMES)]}:\n"
        "    main([*command, '--help'], standalone_mode=False)\n"
        f"print(sorted({heavy} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.stdout.splitlines()[-1] == "[]", done.stderr
    assert all(name in done.stdout for name in NAMES)


@pytest.mark.parametrize("option", ["-V", "--version"])
def test_the_version_is_that_of_the_package(option):
    assert gpt2kit.__version__ in succeeded(run(option))


@pytest.mark.parametrize("module", ["gpt2kit", "gpt2kit.cli"])
def test_both_modules_are_the_command(module):
    done = subprocess.run([sys.executable, "-m", module, "-V"], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, f"gpt2kit, version {gpt2kit.__version__}\n")


def test_without_a_command_it_says_where_to_start():
    out = succeeded(run())
    assert (
        out.split("Usage:")[1].splitlines()[1:]
        == (succeeded(run("--help")).split("Usage:")[1].splitlines()[1:])
    )
    start, first = out.index("Start with:"), out.index("See inside:")
    assert start < first < out.index("Find causes:") < out.index("Ship:") < out.index("Options:")
    assert re.search(r'^  gpt2kit lens ".*"$', out, re.MULTILINE)


def test_every_command_is_listed_whole():
    lines = [line for line in process("--help", text=True).stdout.splitlines() if line[:2] == "  "]
    first_words = [line.split()[0] for line in lines if line.strip()]
    places = [first_words.index(name) for name in NAMES]
    assert places == sorted(places)
    assert not any(line.endswith("...") for line in lines)  # no summary is cut


def commands_of(command: ExampleCommand) -> list[str]:
    """Its examples; one that ends in a backslash goes on in the next line."""
    text = "\n".join(command.examples).replace("\\\n", " ")
    return text.splitlines()


@pytest.mark.parametrize("name", NAMES)
def test_each_help_has_examples_that_parse(name):
    command = COMMANDS[name]
    out = succeeded(run(name, "--help"))
    assert re.search(r"^Examples?:$", out, re.MULTILINE)
    assert command.examples
    for line in commands_of(command):
        program, called, *args = shlex.split(line)
        assert (program, called) == ("gpt2kit", name)
        command.make_context(name, args)  # raises if it does not parse
    assert all(f"  {line}\n" in out for line in command.examples)  # none is wrapped


def test_the_first_command_parses():
    program, name, *args = shlex.split(main.start)
    assert program == "gpt2kit"
    COMMANDS[name].make_context(name, args)


@pytest.mark.parametrize("columns", [80, 200])
@pytest.mark.parametrize("args", [[], *([name] for name in NAMES)], ids=str)
def test_help_fits_its_terminal(args, columns):
    result = CliRunner().invoke(main, [*args, "--help"], terminal_width=columns)
    assert result.exit_code == 0
    assert all(len(line) <= columns for line in result.stdout.splitlines())


@pytest.mark.parametrize("columns", [80, 200])
@pytest.mark.parametrize("command", ["taps", "doctor"])
def test_long_lines_wrap_at_words(command, columns):
    wide = CliRunner().invoke(main, [command], env={"COLUMNS": "1000"}).stdout
    text = CliRunner().invoke(main, [command], env={"COLUMNS": str(columns)}).stdout
    assert all(len(line) <= columns for line in text.splitlines())
    assert text.split() == wide.split()  # no word is broken


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["nonsense"], "No such command 'nonsense'. See `gpt2kit --help`.$"),
        (["lense"], "Did you mean 'lens'"),
        (["--nonsense"], "No such option '--nonsense'"),
        (["lens"], "Missing argument 'PROMPT'. See `gpt2kit lens --help`.$"),
        (["generate"], "Missing argument 'PROMPT...'"),
        (["lens", "a", "b"], r"extra argument \(b\)\. See `gpt2kit lens --help`\.$"),
        (["export"], "Missing option '--onnx'"),
        (["export", "--onnx"], "requires an argument. See `gpt2kit export --help`.$"),
        (["lens", "--x"], "No such option '--x'"),
        (["generate", "x", "-n", "many"], "'many' is not a valid integer"),
        (["generate", "x", "-n", "٣"], "'٣' is not a number in the digits 0 to 9"),
        (["generate", "x", "--top-p", "٠.٥"], "is not a number in the digits 0 to 9"),
        (["lens", "x", "--pos", "٣"], "is not like 3, -1"),
        (["attn"], "Missing argument 'PROMPT'"),
        (["attribute", "x"], "Missing option '--target'"),
        (["patch"], "Missing option '--clean'"),
        (["ablate", "x"], "Missing option '--target'"),
        (["verify", "x.onnx", "--device", "tpu"], "'tpu' is not one of 'auto', 'cpu', 'cuda'"),
        (["export", "--onnx", "x.onnx", "--profile", "x"], "not one of 'portable', 'fused'"),
        (["export", "--onnx", "x.onnx", "--quantize", "2"], "not one of 'int8', 'int4', 'int4-all"),
    ],
)
def test_wrong_usage_is_one_line_and_exits_2(args, message):
    result = run(*args)
    assert_one_line(result.exit_code, result.stdout, result.stderr, message)


def test_choices_are_those_of_the_library():
    from exporters.file.packing import BITS
    from exporters.tracing.plan import EXPORT_DTYPES, PROFILES
    from gpt2kit.torch_engine.dtypes import DTYPES
    from probes.attribution.direct import LEVELS
    from probes.causal.ablation import KINDS
    from probes.lens.lens_result import QUANTITIES
    from probes.lens.logit_lens import SITES

    pairs = [
        (choices.PROFILES, PROFILES), (choices.QUANTISATIONS, BITS),
        (choices.EXPORT_DTYPES, EXPORT_DTYPES), (choices.DTYPES, DTYPES),
        (choices.LEVELS, LEVELS), (choices.ABLATIONS, KINDS),
        (choices.QUANTITIES, QUANTITIES), (choices.SITES, SITES),
    ]  # fmt: skip
    for repeated, original in pairs:
        assert set(repeated) == set(original)


@pytest.mark.parametrize(
    ("words", "typed", "found"),
    [
        ([], "l", ["lens"]),
        (["lens", "x", "--by"], "", list(choices.QUANTITIES)),
        (["lens", "x", "--device"], "c", ["cpu", "cuda"]),
        (["export", "--profile"], "f", ["fused"]),
    ],
)
def test_a_shell_completes(words, typed, found):
    completion = BashComplete(main, {}, "gpt2kit", "_GPT2KIT_COMPLETE")
    assert [item.value for item in completion.get_completions(words, typed)] == found


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_a_shell_gets_its_script(shell):
    environment = {"_GPT2KIT_COMPLETE": f"{shell}_source"}
    result = CliRunner().invoke(main, [], prog_name="gpt2kit", env=environment)
    assert result.exit_code == 0
    assert f"{shell}_complete" in result.stdout


def test_every_command_says_what_it_does():
    assert {name: command.get_short_help_str(200) for name, command in COMMANDS.items()} == {
        name: listed.summary for name, listed in main.listed.items()
    }
    assert all(isinstance(command, ExampleCommand) for command in COMMANDS.values())
    assert all(isinstance(p, click.Argument) or p.help for c in COMMANDS.values()
               for p in c.params)  # fmt: skip
