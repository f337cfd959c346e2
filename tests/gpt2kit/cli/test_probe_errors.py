"""Bad input of the probes' commands is one line on standard error."""

import pytest

from gpt2kit.errors import InputError
from tests.gpt2kit.cli.support import FULL, LONG, PROBES, assert_one_line, run

MEASURING = [command for command in PROBES if command != "facts"]


X = ["--target", "a", "--foil", "b"]


BAD = [
    ("heads", ["--length", "50"], "length = 50: twice that does not fit the context of 40"),
    ("heads", ["--length", "0"], "length = 0 must be at least 1"),
    ("heads", ["--prompt", ""], "the prompt is empty"),
    ("heads", ["--prompt", LONG], "the context holds 40"),
    ("heads", ["--prompt", "x", "--length", "50"], "--length does not go with --prompt"),
    ("heads", ["--prompt", "a\udcffb"], "not UTF-8"),
    ("attn", ["", "--layer", "0", "--head", "0"], "the prompt is empty"),
    (
        "attn",
        ["x", "--layer", "3", "--head", "0"],
        r"layers \[3\] are not among the 3 there are, 0 to 2",
    ),
    ("attn", ["x", "--layer", "1", "--head", "3"], "head 1.3: .* heads 0 to 2"),
    ("attn", ["x", "--layer", "1", "--head", "-1"], "heads 0 to 2"),
    ("attn", [FULL, "--layer", "1", "--head", "0", "--bos"], "do not fit the context of 40"),
    ("attribute", ["", *X], "the prompt is empty"),
    ("attribute", ["x", "--target", "two tokens"], "'two tokens' is not one token"),
    ("attribute", ["x", "--target", "a", "--foil", "a"], "target and foil are both 'a'"),
    ("attribute", ["x", "--target", "a\udcff"], "not UTF-8"),
    (
        "attribute",
        ["x", *X, "--by", "layer"],
        "'layer' is not one of 'component', 'head'",
    ),
    ("attribute", ["x", *X, "--pos", "1"], "does not lie in the prompt, which has 1 token$"),
    ("patch", ["--clean", "a", "--corrupt", "ab", *X], "has 1 token and the corrupt one 2"),
    ("patch", ["--clean", "a", "--corrupt", "a", *X], "effects are normalised by the difference"),
    ("patch", ["--clean", "a", "--corrupt", "b", "--target", "zz"], "'zz' is not one token"),
    ("patch", ["--clean", "a", "--corrupt", "b", *X, "--over", "resid"], "unknown tap"),
    ("patch", ["--clean", "a", "--corrupt", "b", *X, "--over", "[/b]"], "unknown tap"),
    ("patch", ["--clean", "a", "--corrupt", "b", *X, "--over", "blocks.1.z"], "name 'z' alone$"),
    ("patch", ["--clean", "-", "--corrupt", "b", *X], "the prompt is empty"),
    ("patch", ["--clean", "-", "--corrupt", "-", *X], "are both '-'"),
    ("ablate", ["", *X], "the prompt is empty"),
    ("ablate", ["x", "--target", "a", "--foil", "a"], "target and foil are both 'a'"),
    ("ablate", ["x", *X, "--kind", "none"], "'none' is not one of 'zero', 'mean', 'resample'"),
    ("ablate", ["x", *X, "--over", "[/b]"], "unknown tap"),
    ("ablate", ["x", *X, "--kind", "resample"], "give longer ones as reference"),
    ("ablate", ["xy", *X, "--kind", "resample", "--reference", "x"], "as many to resample from"),
    ("ablate", ["x", *X, "--kind", "mean", "--over", "pattern"], "no mean over positions"),
    ("ablate", ["x", *X, "--reference", "y"], "--reference does not go with --kind zero"),
    ("ablate", ["x", *X, "--kind", "mean", "--reference", ""], "the prompt is empty"),
]


@pytest.mark.parametrize(("command", "args", "message"), BAD)
def test_bad_input_is_one_line(folder, command, args, message):
    result = run(command, "--model", folder, *args, stdin="")
    assert_one_line(result.exit_code, result.stdout, result.stderr, message)


@pytest.mark.parametrize("command", PROBES)
@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--model", "./nothing"], "no such folder"),
        (["--onnx", "none.onnx"], "no such file"),
        (["--onnx", "x.onnx", "--dtype", "float32"], "does not go with"),
        (["--model", "bundled", "--device", "abacus"], "'abacus' is not one that torch knows"),
    ],
)
def test_an_engine_that_is_not_there_is_one_line(command, options, message):
    result = run(command, *PROBES[command], *options)
    assert_one_line(result.exit_code, result.stdout, result.stderr, message)


@pytest.mark.parametrize("command", MEASURING)
def test_debug_lets_the_error_through(folder, command):
    args = [arg.replace("the cat", "").replace("16", "0") for arg in PROBES[command]]
    assert isinstance(run(command, *args, "--model", folder, "--debug").exception, InputError)
