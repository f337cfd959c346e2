"""The commands of the probes: they print what the library gives, and refuse in one line."""

import json
import os
import re
import subprocess
import sys

import numpy as np
import pytest
from click.testing import CliRunner
from rich.console import Console

import gpt2kit
from exporters import open_onnx
from gpt2kit.cli import main
from gpt2kit.errors import InputError
from probes import (
    HeadScores,
    attention_patterns,
    copying_score,
    direct_logit_attribution,
    facts,
    head_scores,
)
from probes.causal.ablation import ablate
from probes.causal.patching import activation_patching
from probes.core.metrics import Metric
from probes.facts.report import Fact
from tests.conftest import CONFIG
from tests.gpt2kit.cli.test_commands import (
    FULL,
    LONG,
    OFFLINE,
    _elsewhere,  # noqa: F401
    assert_one_line,
    folder,  # noqa: F401
    onnx_file,  # noqa: F401
    process,
    run,
    succeeded,
)

COMMANDS = {  # command -> arguments that do
    "heads": ["--length", "16"],
    "attn": ["the cat", "--layer", "1", "--head", "2"],
    "attribute": ["the cat", "--target", "a", "--foil", "b"],
    "patch": ["--clean", "the cat", "--corrupt", "the bat", "--target", "a", "--foil", "b"],
    "ablate": ["the cat", "--target", "a", "--foil", "b"],
    "facts": [],
}
MEASURING = [command for command in COMMANDS if command != "facts"]
DIFF = Metric.logit_diff("a", "b")


@pytest.fixture(params=["torch", "onnx"])
def engine(request, folder, onnx_file):  # noqa: F811
    """The options that name an engine, and its runner."""
    if request.param == "torch":
        return ["--model", folder], gpt2kit.load(folder)
    return ["--onnx", onnx_file], open_onnx(onnx_file)


def data(*args: str):
    return untimed(json.loads(succeeded(run(*args, "--json"))))


def plain(result):
    return untimed(json.loads(result.to_json()))


def untimed(read):
    """Without what a clock showed, which is another each time."""
    savings = read.get("saving") or []
    for saving in savings if isinstance(savings, list) else [savings]:
        assert saving.pop("seconds") > 0
        assert saving.pop("seconds_naive") > 0
    return read


def still(text: str) -> str:
    """A drawing without what a clock showed."""
    return re.sub(r"\S+ s; one by one about \S+ s", "…", text)


def drawn(result, width: int = 80) -> str:
    console = Console(width=width, color_system=None)
    with console.capture() as capture:
        console.print(result.render())
    return capture.get()


def test_help_imports_nothing_heavy():
    script = (
        "import sys; from gpt2kit.cli import main\n"
        f"for command in {list(COMMANDS)}:\n"
        "    main([command, '--help'], standalone_mode=False)\n"
        "heavy = {'torch', 'onnxruntime', 'onnx', 'numpy', 'rich', 'tokenizers', 'probes'}\n"
        "print(sorted(heavy & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.stdout.splitlines()[-1] == "[]", done.stderr


def test_a_process_has_the_commands_too():
    done = process("--help", text=True)
    lines = [
        line for line in done.stdout.splitlines() if line.split()[:1] and line.startswith("  ")
    ]
    assert {line.split()[0] for line in lines} >= set(COMMANDS)
    assert not any(line.endswith("...") for line in lines)  # no summary is cut


# What is printed is what the library gives


@pytest.mark.parametrize("options", [{"length": 16}, {"prompt": "the hat the hat"}])
def test_heads_are_scored(engine, options):
    args, runner = engine
    given = [x for name, value in options.items() for x in (f"--{name}", str(value))]
    read, want = data("heads", *args, *given), head_scores(runner, **options)
    copying = read.pop("copying")
    assert read == plain(want)
    assert copying == plain(copying_score(runner))["scores"]
    out = succeeded(run("heads", *args, *given))
    layer, head, score = want.leading("induction")[0]
    assert f"{layer}.{head}  {score:.2f}" in out
    assert "most copying" in out


def test_a_kind_that_a_text_does_not_show_is_null(folder):  # noqa: F811
    read = data("heads", "--model", folder, "--prompt", "xyz")
    assert read["induction"] == [[None] * CONFIG.n_head] * CONFIG.n_layer
    assert read["previous_token"][0][0] is not None


@pytest.mark.parametrize("options", [[], ["--bos"]])
@pytest.mark.parametrize("layer", [1, -1])
def test_a_head_is_drawn(engine, options, layer):
    args, runner = engine
    patterns = attention_patterns(runner, "the cat", prepend_bos=bool(options))
    want = patterns.show(layer % CONFIG.n_layer, 2)
    args = ["attn", "the cat", "--layer", str(layer), "--head", "2", *options, *args]
    read = data(*args)
    np.testing.assert_allclose(read.pop("pattern"), want.pattern, rtol=1e-5, atol=1e-7)
    assert read == {name: x for name, x in plain(want).items() if name != "pattern"}
    assert succeeded(run(*args)) == drawn(want)


@pytest.mark.parametrize("by", ["component", "head", "neuron"])
@pytest.mark.parametrize(("foil", "pos", "bos"), [(None, -1, True), ("b", 2, False)])
def test_a_logit_is_attributed(engine, by, foil, pos, bos):
    chosen, runner = engine
    want = direct_logit_attribution(
        runner, "the cat", target="a", foil=foil, by=by, position=pos, prepend_bos=bos
    )
    args = ["attribute", "the cat", "--target", "a", "--by", by, "--pos", str(pos)]
    args += [*(["--foil", foil] if foil else []), *(["--bos"] if bos else []), *chosen]
    assert data(*args) == plain(want)
    assert succeeded(run(*args)) == drawn(want)


@pytest.mark.parametrize("over", ["resid_post", "z", "mlp_out", "attn_out"])
def test_a_prompt_is_patched(engine, over):
    args, runner = engine
    want = activation_patching(runner, "the cat", "the bat", metric=DIFF, over=over)
    args = ["patch", *COMMANDS["patch"], "--over", over, *args]
    assert data(*args) == plain(want)
    assert still(succeeded(run(*args))) == still(drawn(want))


@pytest.mark.parametrize(
    ("kind", "over", "reference"),
    [
        ("zero", "z", []),
        ("zero", "mlp_out", []),
        ("mean", "attn_out", []),
        ("mean", "z", ["a hat"]),
        ("resample", "z", ["the dog is here", "or there"]),
    ],
)
def test_heads_are_ablated(engine, kind, over, reference):
    args, runner = engine
    want = ablate(runner, "the cat", metric=DIFF, kind=kind, over=over, reference=reference or None)
    args = ["ablate", *COMMANDS["ablate"], "--kind", kind, "--over", over, *args]
    args += [x for text in reference for x in ("--reference", text)]
    assert data(*args) == plain(want)
    assert still(succeeded(run(*args))) == still(drawn(want))


def test_without_a_foil_the_log_probability_is_measured(folder):  # noqa: F811
    runner, metric = gpt2kit.load(folder), Metric.logprob("a")
    read = data("patch", *COMMANDS["patch"][:-2], "--model", folder)
    assert read == plain(activation_patching(runner, "the cat", "the bat", metric=metric))
    read = data("ablate", "the cat", "--target", "a", "--model", folder)
    assert read == plain(ablate(runner, "the cat", metric=metric))


@pytest.mark.parametrize("command", ["heads", "attn", "attribute", "patch", "ablate"])
def test_a_dash_reads_standard_input(folder, command):  # noqa: F811
    text = "the cat"
    args = {"heads": ["--prompt", text]}.get(command, COMMANDS[command])
    named = still(succeeded(run(command, *args, "--model", folder)))
    dashed = ["-" if arg == text else arg for arg in args]
    assert dashed != args
    assert still(succeeded(run(command, *dashed, "--model", folder, stdin=text))) == named


# Facts


def fact(claimed: float, name: str = "layers [b]") -> Fact:
    return Fact(
        name=name, source="us", measure=lambda runner: (runner.config.n_layer,),
        claimed=(claimed,), reason="exact",
    )  # fmt: skip


@pytest.mark.parametrize(("claims", "code"), [([3], 0), ([3, 4], 1)])
def test_facts_that_do_not_hold_exit_1(engine, monkeypatch, claims, code):
    args, runner = engine
    chosen = [fact(claim) for claim in claims]
    check = facts.check_facts
    monkeypatch.setattr(facts, "check_facts", lambda r, **given: check(r, chosen, **given))
    want, result = check(runner, chosen), run("facts", *args)
    assert (result.exit_code, result.stdout, result.stderr) == (code, drawn(want), "")
    result = run("facts", "--json", *args)
    assert (result.exit_code, json.loads(result.stdout), result.stderr) == (code, plain(want), "")


def test_facts_of_another_model_exit_3(engine):
    result = run("facts", *engine[0])
    assert_one_line(result.exit_code, result.stdout, result.stderr, "is not gpt2", exit_code=3)


def test_auto_says_that_it_fell_back(tmp_path):
    environment = os.environ | OFFLINE | {"HF_HOME": str(tmp_path / "hub")}
    done = process("facts", text=True, encoding="utf-8", env=environment)
    assert (done.returncode, done.stdout) == (3, "")
    warning, error = done.stderr.splitlines()
    assert "using the small bundled model" in warning
    assert error.startswith("gpt2kit: error: bundled is not gpt2")


# What is shown meanwhile, and how wide


@pytest.mark.parametrize(
    ("command", "last"),
    [
        ("heads", "reading every head's weights"),
        ("attn", "loading the model"),
        ("attribute", "attributing"),
        ("patch", "patching"),
        ("ablate", "ablating"),
        ("lens", "reading every layer"),
    ],
)
def test_a_terminal_shows_what_goes_on(folder, command, last):  # noqa: F811
    args = [command, *COMMANDS.get(command, ["the cat"]), "--model", folder, "--json"]
    result = CliRunner().invoke(main, args, env={"FORCE_COLOR": "1"})  # as if it were one
    assert last in result.stderr
    count = {"heads": "3/3", "patch": "15/15", "ablate": "9/9"}.get(command, "")  # layers, places
    assert count in re.sub(r"\x1b\[[\d;]*m", "", result.stderr)
    assert untimed(json.loads(result.stdout)) == data(*args)
    assert run(*args).stderr == ""  # it is none


@pytest.mark.parametrize(("layers", "heads"), [(12, 12), (48, 25)])
def test_the_table_of_heads_fits_80_columns(layers, heads):
    scores = [np.random.default_rng(i).random((layers, heads)) for i in range(5)]
    result = HeadScores("gpt2", "float32", "4 x 50 random tokens, said twice", *scores)
    assert drawn(result, 80) == drawn(result, 200)
    for row in drawn(result, 80).splitlines()[4:9]:
        assert re.fullmatch(r"(\d+\.\d+ +[01]\.\d\d +){5}", row)


def test_a_long_attention_grid_says_what_its_cells_are(folder):  # noqa: F811
    args = ["attn", FULL, "--layer", "0", "--head", "0", "--model", folder]
    result = CliRunner().invoke(main, args, env={"COLUMNS": "50"})
    assert " ".join(result.stdout.split("\n\n")[0].split()) == (
        "attention of head 0.0 tiny float32 40 tokens "
        "rows look at columns: ·░▒▓█ from 0 to 1, 2 tokens a cell"
    )


def test_a_table_with_few_parts_has_no_empty_rows(folder):  # noqa: F811
    """3 layers have 9 parts; the table holds 10 a side, and prints as many as there are."""
    out = succeeded(run("attribute", *COMMANDS["attribute"], "--model", folder))
    table = out.partition("against")[2].partition("the strongest of 9 parts")[0].splitlines()[1:]
    values = np.concatenate(
        [
            np.ravel(x)
            for x in data("attribute", *COMMANDS["attribute"], "--model", folder)["values"].values()
        ]
    )
    assert len(table) == max((values > 0).sum(), (values < 0).sum())
    assert all(line.strip() for line in table)


# Bad input

X = ["--target", "a", "--foil", "b"]
BAD = [
    ("heads", [], "length = 50: twice that does not fit the context of 40"),
    ("heads", ["--length", "0"], "length = 0 must be from 1"),
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
    ("attribute", ["x", *X, "--by", "layer"], "'layer' is not one of component, head, neuron"),
    ("attribute", ["x", *X, "--pos", "1"], "does not lie in the prompt, which has 1 token$"),
    ("patch", ["--clean", "a", "--corrupt", "ab", *X], "has 1 token and the corrupt one 2"),
    ("patch", ["--clean", "a", "--corrupt", "a", *X], "nothing can be normalised by that"),
    ("patch", ["--clean", "a", "--corrupt", "b", "--target", "zz"], "'zz' is not one token"),
    ("patch", ["--clean", "a", "--corrupt", "b", *X, "--over", "resid"], "unknown tap"),
    ("patch", ["--clean", "a", "--corrupt", "b", *X, "--over", "[/b]"], "unknown tap"),
    ("patch", ["--clean", "a", "--corrupt", "b", *X, "--over", "blocks.1.z"], "name 'z' alone$"),
    ("patch", ["--clean", "-", "--corrupt", "b", *X], "the prompt is empty"),
    ("patch", ["--clean", "-", "--corrupt", "-", *X], "are both '-'"),
    ("ablate", ["", *X], "the prompt is empty"),
    ("ablate", ["x", "--target", "a", "--foil", "a"], "target and foil are both 'a'"),
    ("ablate", ["x", *X, "--kind", "none"], "'none' is not one of zero, mean, resample"),
    ("ablate", ["x", *X, "--over", "[/b]"], "unknown tap"),
    ("ablate", ["x", *X, "--kind", "resample"], "give longer ones as reference"),
    ("ablate", ["xy", *X, "--kind", "resample", "--reference", "x"], "as many to resample from"),
    ("ablate", ["x", *X, "--kind", "mean", "--over", "pattern"], "no mean over positions"),
    ("ablate", ["x", *X, "--reference", "y"], "--reference does not go with --kind zero"),
    ("ablate", ["x", *X, "--kind", "mean", "--reference", ""], "the prompt is empty"),
]


@pytest.mark.parametrize(("command", "args", "message"), BAD)
def test_bad_input_is_one_line(folder, command, args, message):  # noqa: F811
    result = run(command, "--model", folder, *args, stdin="")
    assert_one_line(result.exit_code, result.stdout, result.stderr, message)


@pytest.mark.parametrize("command", COMMANDS)
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
    result = run(command, *COMMANDS[command], *options)
    assert_one_line(result.exit_code, result.stdout, result.stderr, message)


@pytest.mark.parametrize("command", MEASURING)
def test_debug_lets_the_error_through(folder, command):  # noqa: F811
    args = [arg.replace("the cat", "").replace("16", "0") for arg in COMMANDS[command]]
    assert isinstance(run(command, *args, "--model", folder, "--debug").exception, InputError)


@pytest.mark.parametrize("command", [c for c in COMMANDS if c not in ("heads", "facts")])
def test_what_is_missing_is_a_matter_of_usage(command):
    result = run(command)
    assert result.exit_code == 2
    assert "Usage:" in result.stderr


def test_facts_without_the_real_weights_exits_3(monkeypatch, tmp_path):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("HF_HOME", str(tmp_path))
    done = subprocess.run(
        [sys.executable, "-m", "gpt2kit.cli", "facts", "--model", "gpt2"],
        capture_output=True, text=True, env=dict(os.environ),
    )  # fmt: skip
    assert (done.returncode, done.stdout) == (3, "")
    assert "the real gpt2 cannot be had here" in done.stderr
    assert done.stderr.count("\n") == 1
