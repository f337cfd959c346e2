"""The commands of the probes print what the library gives."""

import json
import os
import re
import subprocess
import sys

import numpy as np
import pytest
from click.testing import CliRunner

import gpt2kit
from gpt2kit.cli import main
from probes import (
    HeadScores,
    attention_patterns,
    copying_score,
    direct_logit_attribution,
    head_scores,
)
from probes.causal.ablation import ablate
from probes.causal.patching import activation_patching
from probes.core.metrics import Metric
from probes.facts import check as checking
from probes.facts.fact import Fact
from probes.heads.scores import HEAD_KINDS
from tests.conftest import CONFIG
from tests.gpt2kit.cli.support import (
    FULL,
    OFFLINE,
    PROBES,
    assert_one_line,
    drawn,
    process,
    run,
    succeeded,
)

DIFF = Metric.logit_diff("a", "b")


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


def test_a_kind_that_a_text_does_not_show_is_null(folder):
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
    args = ["patch", *PROBES["patch"], "--over", over, *args]
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
    args = ["ablate", *PROBES["ablate"], "--kind", kind, "--over", over, *args]
    args += [x for text in reference for x in ("--reference", text)]
    assert data(*args) == plain(want)
    assert still(succeeded(run(*args))) == still(drawn(want))


def test_without_a_foil_the_log_probability_is_measured(folder):
    runner, metric = gpt2kit.load(folder), Metric.logprob("a")
    read = data("patch", *PROBES["patch"][:-2], "--model", folder)
    assert read == plain(activation_patching(runner, "the cat", "the bat", metric=metric))
    read = data("ablate", "the cat", "--target", "a", "--model", folder)
    assert read == plain(ablate(runner, "the cat", metric=metric))


@pytest.mark.parametrize("command", ["heads", "attn", "attribute", "patch", "ablate"])
def test_a_dash_reads_standard_input(folder, command):
    text = "the cat"
    args = {"heads": ["--prompt", text]}.get(command, PROBES[command])
    named = still(succeeded(run(command, *args, "--model", folder)))
    dashed = ["-" if arg == text else arg for arg in args]
    assert dashed != args
    assert still(succeeded(run(command, *dashed, "--model", folder, stdin=text))) == named


def fact(claimed: float, name: str = "layers [b]") -> Fact:
    return Fact(
        name=name, source="us", measure=lambda runner: (runner.config.n_layer,),
        claimed=(claimed,), reason="exact",
    )  # fmt: skip


@pytest.mark.parametrize(("claims", "code"), [([3], 0), ([3, 4], 1)])
def test_facts_that_do_not_hold_exit_1(engine, monkeypatch, claims, code):
    args, runner = engine
    chosen = [fact(claim) for claim in claims]
    check = checking.check_facts
    monkeypatch.setattr(checking, "check_facts", lambda r, **given: check(r, chosen, **given))
    want, result = check(runner, chosen), run("facts", *args)
    assert (result.exit_code, result.stdout, result.stderr) == (code, drawn(want), "")
    result = run("facts", "--json", *args)
    assert (result.exit_code, json.loads(result.stdout), result.stderr) == (code, plain(want), "")
    result = run("facts", "--csv", *args)
    assert (result.exit_code, result.stdout, result.stderr) == (code, want.to_csv(), "")


def test_facts_of_another_model_exit_3(engine):
    result = run("facts", *engine[0])
    what = "no facts are stated about"
    assert_one_line(result.exit_code, result.stdout, result.stderr, what, exit_code=3)


def test_auto_says_that_it_fell_back_and_the_bundled_models_facts_hold(tmp_path):
    environment = os.environ | OFFLINE | {"HF_HOME": str(tmp_path / "hub")}
    done = process("facts", text=True, encoding="utf-8", env=environment)
    assert done.returncode == 0
    assert "using the small bundled model" in done.stderr
    assert done.stderr.count("\n") == 1
    assert done.stdout.startswith("facts  bundled  float32")
    assert "differs" not in done.stdout.partition("\n")[2]


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
def test_a_terminal_shows_what_goes_on(folder, command, last):
    args = [command, *PROBES.get(command, ["the cat"]), "--model", folder, "--json"]
    result = CliRunner().invoke(main, args, env={"FORCE_COLOR": "1"})  # as if it were one
    assert last in result.stderr
    count = {"heads": "3/3", "patch": "15/15", "ablate": "9/9"}.get(command, "")  # layers, places
    assert count in re.sub(r"\x1b\[[\d;]*m", "", result.stderr)
    assert untimed(json.loads(result.stdout)) == data(*args)
    assert run(*args).stderr == ""  # it is none


@pytest.mark.parametrize(("layers", "heads"), [(12, 12), (48, 25)])
def test_the_table_of_heads_fits_80_columns(layers, heads):
    scores = {k: np.random.default_rng(i).random((layers, heads)) for i, k in enumerate(HEAD_KINDS)}
    text = "4 x 50 random tokens, said twice"
    result = HeadScores(source="gpt2", dtype="float32", text=text, **scores)
    assert drawn(result, 80) == drawn(result, 200)
    for row in drawn(result, 80).splitlines()[4:9]:
        assert re.fullmatch(r"(\d+\.\d+ +[01]\.\d\d +){5}", row)


def test_a_long_attention_grid_says_what_its_cells_are(folder):
    args = ["attn", FULL, "--layer", "0", "--head", "0", "--model", folder]
    result = CliRunner().invoke(main, args, env={"COLUMNS": "50"})
    assert " ".join(result.stdout.split("\n\n")[0].split()) == (
        "attention of head 0.0 tiny float32 40 tokens "
        "rows look at columns: ·░▒▓█ from 0 to 1, 2 tokens a cell"
    )


def test_a_table_with_few_parts_has_no_empty_rows(folder):
    """3 layers have 9 parts; the table holds 10 a side, and prints as many as there are."""
    out = succeeded(run("attribute", *PROBES["attribute"], "--model", folder))
    table = out.partition("against")[2].partition("the strongest of 9 parts")[0].splitlines()[1:]
    values = np.concatenate(
        [
            np.ravel(x)
            for x in data("attribute", *PROBES["attribute"], "--model", folder)["values"].values()
        ]
    )
    assert len(table) == max((values > 0).sum(), (values < 0).sum())
    assert all(line.strip() for line in table)
