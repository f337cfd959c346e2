"""Every numeric option takes any text: the command runs, or it is one line and exit code 2."""

import os

import pytest

from tests.gpt2kit.cli.support import assert_one_line, run

VALUES = [
    "99999999999999999999", "-99999999999999999999", "9" * 400, "9" * 5000, "9223372036854775808",
    "1e400", "nan", "-inf", "", "0x10", "\u0663",
]  # fmt: skip
RANGES = [f"{value}:" for value in VALUES] + [f"0,{value}" for value in VALUES] + ["::0", "1:2:3:4"]
OPTIONS = {  # what is called, without the option -> the options
    ("lens", "hi"): ["--topk", "--pos"],
    ("generate", "hi"): ["-n", "--max-new-tokens"],
    ("generate", "hi", "-n", "2"): ["--temperature", "--top-k", "--top-p", "--seed"],
    ("heads",): ["--length"],
    ("attn", "hi", "--head", "0"): ["--layer"],
    ("attn", "hi", "--layer", "0"): ["--head"],
    ("attribute", "hi", "--target", "a"): ["--pos"],
    ("bench",): ["--threads"],
    ("export", "--onnx", "x.onnx"): ["--opset"],
}
CALLS = [(command, option) for command, options in OPTIONS.items() for option in options]


@pytest.mark.parametrize(("command", "option"), CALLS, ids=lambda part: "".join(part))
def test_any_number_is_one_line_or_works(folder, command, option):
    of_lens = command[0] == "lens" and option == "--pos"
    for value in VALUES + (RANGES if of_lens else []):
        given = [f"{option}={value}"] if option.startswith("--") else [option, value]
        result = run(*command, "--model", folder, *given)
        if result.exit_code:
            assert_one_line(result.exit_code, result.stdout, result.stderr, ".")
        else:  # a huge seed or temperature, and a range that ends beyond the prompt
            assert option in ("--seed", "--temperature") or of_lens, value[:30]
    assert os.listdir() == []  # noqa: PTH208 - the empty folder of the test
