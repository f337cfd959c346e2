"""Every example runs as a program of its own, and shows what its docstring promises."""

import ast
import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from rich.cells import cell_len

from exporters import export_onnx
from gpt2kit import Edit, generate, load
from tests.probes.facts.support import small

EXAMPLES = Path(__file__).parents[1] / "examples"
ALL = sorted(EXAMPLES.glob("*.py"))
TAP = "blocks.4.resid_post"


def start(name: str, *arguments: object) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"COLUMNS": "80", "OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "error"}
    return subprocess.run(
        [sys.executable, EXAMPLES / name, *map(str, arguments)],
        capture_output=True, text=True, env=environment,
    )  # fmt: skip


def shown(name: str, *arguments: object) -> str:
    done = start(name, *arguments)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    assert all(cell_len(line) <= 80 for line in done.stdout.split("\n"))
    return done.stdout


@pytest.fixture(scope="module")
def exported(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("examples") / "bundled.onnx"
    export_onnx(load("bundled", device="cpu"), path, taps=TAP, edits=TAP)
    return path


def test_the_best_induction_head_is_found_and_missed():
    text = shown("find_induction_heads.py", "--model", "bundled")
    best = re.search(r"current token *\n(?:\d\.\d +[\d.]+ +){2}(\d\.\d) +([\d.]+)", text)
    assert best
    assert float(best[2]) >= 0.8
    assert f"attention of head {best[1]}  bundled" in text
    losses = re.findall(r"without (\d+) induction heads: ([\d.]+)", text)
    assert [int(count) for count, _ in losses] == [0, 1, 3, 6, 12]
    values = [float(loss) for _, loss in losses]
    assert values == sorted(values)
    assert values[0] < 0.1 < 5 < values[-1]


def test_the_lens_tells_where_a_word_first_leads():
    text = shown("lens_on_a_story.py")
    assert "logit lens  bundled" in text
    assert len(re.findall(r"^after .* the next, ", text, re.MULTILINE)) == 11
    assert re.search(r"' to' +the next, ' Tom' +first leads after blocks\.7\.", text)
    assert "never leads" in text


def test_patching_finds_the_layer_and_the_head():
    text = shown("patch_a_prompt.py")
    assert "activation patching of resid_post  bundled  float32" in text
    moved = re.search(
        r"in layer (\d) it moves .*: ([\d.]+) of the effect is there,\n([\d.]+)", text
    )
    assert moved
    assert moved[1] == "6"
    assert float(moved[2]) > 0.7 > 0.3 > float(moved[3])
    assert re.search(r"head 6\.2 moves the largest part of it: 0\.4", text)


def test_steering_turns_her_into_his():
    text = shown("steer.py")
    her, his = (
        [float(x) for x in re.findall(rf"' {word}' ([\d.]+)", text)] for word in ("her", "his")
    )
    assert len(her) == len(his) == 5
    assert her == sorted(her)
    assert his == sorted(his, reverse=True)
    assert his[0] > 0.3 > 0.05 > her[0]
    assert her[-1] > 0.3 > 0.15 > his[-1]
    assert re.search(r"\+2 +her ", text)
    assert re.search(r"-2 +his ", text)


@pytest.mark.slow
def test_two_engines_agree():
    text = shown("same_probe_two_engines.py", "--prompt", "Lily and Tom had")
    assert text.count("logit lens  bundled") == 2
    found = re.search(r"differ by ([\d.e-]+) nats at most; 100% of top tokens agree", text)
    assert found
    assert 0 < float(found[1]) < 1e-4


def test_onnxruntime_alone_steers_as_gpt2kit_does(exported):
    text = shown("steer_with_onnxruntime.py", exported)
    texts = re.findall(r"x direction: '(The doctor lost.*)'$", text, re.MULTILINE)
    runner, prompts = load("bundled", device="cpu"), ("The girl lost", "The boy lost")
    ends = [runner.run(runner.tokenizer.encode(p), taps=TAP).taps[TAP][0, -1] for p in prompts]
    for strength, found in zip((0, 2, -2), texts, strict=True):
        edit = Edit.steer(TAP, ends[0] - ends[1], strength)
        start_of = "The doctor lost"
        new = generate(runner, start_of, max_new_tokens=8, greedy=True, edits=[edit])
        assert found == start_of + new
    assert "lost her" in texts[1]
    assert "lost his" in texts[2]


def test_the_foreign_program_knows_nothing_of_gpt2kit():
    tree = ast.parse((EXAMPLES / "steer_with_onnxruntime.py").read_text())
    modules = {a.name for n in ast.walk(tree) if isinstance(n, ast.Import) for a in n.names}
    modules |= {str(n.module) for n in ast.walk(tree) if isinstance(n, ast.ImportFrom)}
    third_party = modules - set(sys.stdlib_module_names)
    assert third_party == {"numpy", "onnxruntime", "tokenizers"}


def test_the_foreign_program_says_what_a_file_lacks(exported, tmp_path):
    import onnx

    model = onnx.load(exported)
    keep = [i for i in model.graph.input if not i.name.startswith(TAP)]
    del model.graph.input[:]
    model.graph.input.extend(keep)
    onnx.save(model, tmp_path / "plain.onnx")
    (tmp_path / "tokenizer.json").write_text(exported.with_name("tokenizer.json").read_text())
    done = start("steer_with_onnxruntime.py", tmp_path / "plain.onnx")
    assert done.returncode == 1
    assert f"cannot be edited at {TAP}" in done.stderr


def test_ioi_is_of_gpt2_alone():
    done = start("reproduce_ioi.py", "--model", "bundled")
    assert done.returncode == 3
    assert done.stdout == ""
    assert done.stderr.startswith("bundled is not gpt2 (124M): its n_layer is 8, not 12")
    assert done.stderr.count("\n") == 1
    missing = start("reproduce_ioi.py", "--model", "no/such/folder")
    assert missing.returncode == 3  # as `gpt2kit facts` where the real weights cannot be had
    assert missing.stderr.count("\n") == 1


def test_ioi_prints_its_facts_where_the_model_is_taken_for_gpt2(monkeypatch, capsys):
    spec = importlib.util.spec_from_file_location("ioi", EXAMPLES / "reproduce_ioi.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    monkeypatch.setattr(sys, "argv", ["reproduce_ioi.py"])
    monkeypatch.setattr(
        module.gpt2kit, "load", lambda name: small(n_embd=48, n_layer=12, n_head=12)
    )
    monkeypatch.setattr(module, "require_gpt2", lambda runner: None)
    assert module.main() == 1
    text = capsys.readouterr().out
    assert "IOI: logit differences of the 8 prompts" in text
    assert "S-inhibition" in text
    assert "greater-than" not in text


@pytest.mark.parametrize("file", ALL, ids=lambda file: file.stem)
def test_each_is_short_tells_what_one_sees_and_is_run_here(file):
    text = file.read_text()
    docstring = ast.get_docstring(ast.parse(text))
    assert "ou see" in docstring
    assert f"python examples/{file.name}" in docstring
    assert "def main() -> " in text
    assert 20 <= len(text.splitlines()) <= 70
    tests = Path(__file__).read_text()
    assert f'shown("{file.name}"' in tests or f'start("{file.name}"' in tests
