"""`gpt2kit lens`: the grid, JSON and CSV, and bad input."""

import csv
import io
import json

import pytest

import gpt2kit
from exporters import OnnxRunner
from probes import logit_lens, tuned_lens
from tests.gpt2kit.cli.support import FULL, LONG, assert_one_line, run, succeeded


def test_the_grid_is_printed(folder, onnx_file):
    torch_grid = succeeded(run("lens", "the cat", "--model", folder, "--topk", "2"))
    assert "logit lens  tiny  float32  5 tokens, no BOS added" in torch_grid
    assert torch_grid.count("\nfinal") == 1
    onnx_grid = succeeded(run("lens", "the cat", "--onnx", onnx_file, "--topk", "2"))
    assert onnx_grid.split("\n")[1:] == torch_grid.split("\n")[1:]  # the name differs


def test_json_and_csv_are_data(folder):
    args = ["lens", "the é", "--model", folder, "--topk", "3", "--pos", "-2:", "--target", "t"]
    read = json.loads(succeeded(run(*args, "--json")))
    lens = logit_lens(gpt2kit.load(folder), "the é", top_k=3)
    assert read["ids"] == lens.prompt_ids.tolist()
    assert {cell["position"] for cell in read["cells"]} == {
        len(read["ids"]) - 2,
        len(read["ids"]) - 1,
    }
    assert read["cells"][-1]["top"][2]["id"] == lens.top_ids[-1, -1, 2]
    rows = list(csv.DictReader(io.StringIO(succeeded(run(*args, "--csv")), newline="")))
    assert len(rows) == len(read["cells"])
    assert float(rows[-1]["kl"]) == read["cells"][-1]["kl"]
    assert int(rows[0]["target1_rank"]) == read["cells"][0]["targets"][0]["rank"]


@pytest.mark.parametrize("args", [["--by", "kl"], ["--bos"], ["--sites", "attn"], ["--pos", "0,2"]])
def test_every_option_of_the_grid_works(folder, args):
    assert "final" in succeeded(run("lens", "the cat", "--model", folder, *args))


def test_a_target_and_its_foil(folder):
    args = ["lens", "the cat", "--model", folder, "--target", "a"]
    assert "probability of 'a'" in succeeded(run(*args))
    assert "logit of 'a' minus logit of 'b'" in succeeded(run(*args, "--foil", "b"))


def test_the_tuned_lens_of_the_bundled_model():
    args = ["lens", "Once upon a time", "--model", "bundled", "--tuned", "--target", " there"]
    assert succeeded(run(*args)).startswith("tuned lens  bundled  float32")
    read = json.loads(succeeded(run(*args, "--json", "--pos", "-1", "--bos", "--topk", "2")))
    bundled = gpt2kit.load("bundled")
    lens = tuned_lens(
        bundled, "Once upon a time", top_k=2, targets=" there", positions=-1, prepend_bos=True
    )
    assert read == lens.to_dict()


BAD_LENS = [
    ([""], "the prompt is empty"),
    ([LONG], "the context holds 40"),
    ([FULL, "--bos"], "do not fit the context of 40"),
    (["x", "--topk", "0"], "must be from 1"),
    (["x", "--topk", "-1"], "must be from 1"),
    (["x", "--topk", "9999"], "must be from 1"),
    (["x", "--by", "colour"], "'--by': 'colour' is not one of 'prob', 'logit'"),
    (["x", "--sites", "heads"], "not one of 'resid', 'mid', 'attn', 'mlp'"),
    (["x", "--pos", "9"], "positions \\[9\\] are not among the 1"),
    (["x", "--pos", "a"], "is not like 3, -1"),
    (["x", "--pos", ""], "is not like 3, -1"),
    (["x", "--pos", "1:2:3:4"], "is not like 3, -1"),
    (["x", "--pos", "::0"], "positions"),
    (["x", "--pos", "4:2"], "select none of"),
    (["x", "--target", "two tokens"], "is not one token"),
    (["x", "--target", "a\udcff"], "not UTF-8"),
    (["x", "--foil", "a"], "--foil needs a --target"),
    (["x", "--json", "--csv"], "choose one"),
    (["x", "--tuned"], "no tuned lens ships for the weights of tiny .* with train_tuned_lens"),
    (["x", "--tuned", "--sites", "mlp"], "--sites mlp does not go with --tuned, which reads"),
    (["\udcff"], "the prompt is not UTF-8"),
]


@pytest.mark.parametrize(("args", "message"), BAD_LENS)
def test_lens_refuses_in_one_line(folder, args, message):
    result = run("lens", "--model", folder, *args)
    assert_one_line(result.exit_code, result.stdout, result.stderr, message)


def test_a_file_without_the_taps_of_a_lens_says_how_to_export_them(onnx_file, monkeypatch):
    init = OnnxRunner.__init__

    def without_taps(self, *args):
        init(self, *args)
        self.taps = ()

    monkeypatch.setattr(OnnxRunner, "__init__", without_taps)
    result = run("lens", "x", "--onnx", onnx_file)
    advice = r"--taps 'blocks\.0\.resid_pre' --taps 'blocks\.\*\.resid_post'`$"
    assert_one_line(result.exit_code, result.stdout, result.stderr, advice)
