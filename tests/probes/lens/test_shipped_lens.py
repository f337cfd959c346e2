"""The tuned lens that ships beside the bundled model."""

import shutil
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch

from exporters import open_onnx
from gpt2kit import GPT2, TorchRunner, load, shipped
from gpt2kit.errors import CheckpointError, InputError
from gpt2kit.runner import Source
from gpt2kit.torch_engine.dtypes import DTYPES
from probes import TunedLens, logit_lens, tuned_lens
from tests.conftest import QUANTISED_TAPS

STORY = (
    "One day, a little girl named Lily went to the park with her dog. The dog ran after a ball and "
    "fell into the water. Lily was sad, but a kind man helped the dog. Lily said thank you."
)
TAPS = "*.resid_*"


@pytest.fixture(scope="module")
def lens() -> TunedLens:
    return TunedLens.load("bundled")


def test_it_is_small_and_belongs_to_the_weights_that_ship(bundled, lens):
    assert (shipped.BUNDLED / shipped.LENS_FILE).stat().st_size <= 2_000_000
    assert lens.source == "bundled"
    assert (lens.weight.dtype, lens.bias.dtype) == ("float32", "float32")
    lens.check(bundled)
    assert bundled.weights_sha256 in lens.sha256


def test_every_layer_reads_nearer_to_the_models_prediction_than_by_the_logit_lens(bundled):
    before = logit_lens(bundled, STORY).kl.mean(1)
    after = tuned_lens(bundled, STORY).kl.mean(1)
    assert (after[:-1] < 0.7 * before[:-1]).all(), (before, after)


@pytest.mark.parametrize("dtype", DTYPES)
def test_it_is_the_default_in_every_dtype(lens, dtype):
    runner = load("bundled", device="cpu", dtype=dtype)
    assert tuned_lens(runner, STORY) == tuned_lens(runner, STORY, lens)


@pytest.mark.parametrize(
    ("profile", "quantize"),
    [("portable", None), ("fused", None), ("fused", "int8"), ("fused", "int4")],
)
def test_it_is_the_default_for_exported_files(bundled, bundled_file, lens, profile, quantize):
    taps = QUANTISED_TAPS if quantize else TAPS
    runner = open_onnx(bundled_file(profile, taps=taps, quantize=quantize), device="cpu")
    read = tuned_lens(runner, STORY)
    assert read == tuned_lens(runner, STORY, lens)
    by_torch = tuned_lens(bundled, STORY)
    if quantize is None:
        np.testing.assert_allclose(read.kl, by_torch.kl, atol=1e-4)
    else:  # nearer to the quantised model's own prediction than the logit lens is
        assert (read.kl[:-1].mean(1) < logit_lens(runner, STORY).kl[:-1].mean(1)).all()


def test_a_file_in_half_precision_and_a_copied_folder_have_the_same_lens(
    bundled_file, lens, tmp_path
):
    runner = open_onnx(bundled_file(taps=TAPS, dtype="float16"), device="cpu")
    assert tuned_lens(runner, STORY) == tuned_lens(runner, STORY, lens)
    shutil.copytree(shipped.BUNDLED, tmp_path / "mine")
    (tmp_path / "mine" / shipped.LENS_FILE).unlink()
    runner = load(tmp_path / "mine", device="cpu")
    assert tuned_lens(runner, STORY) == tuned_lens(runner, STORY, lens)


def test_for_another_model_one_line_says_what_to_do(runner):
    with pytest.raises(InputError) as caught:
        tuned_lens(runner, "the cat")
    digest = runner.weights_sha256[:12]
    assert str(caught.value) == (
        f"no tuned lens ships for the weights of random (sha256 {digest}…); train one with "
        "train_tuned_lens, or read one with TunedLens.load, and give it as lens="
    )


def test_other_weights_of_the_same_shape_are_refused(bundled, lens):
    model = GPT2(bundled.config)
    model.load_state_dict(bundled.model.state_dict())
    with torch.no_grad():
        model.wpe.weight[0, 0] += 1
    other = TorchRunner(model.eval().requires_grad_(False), bundled.tokenizer, Source("bundled"))
    with pytest.raises(InputError, match="no tuned lens ships for the weights of bundled"):
        tuned_lens(other, STORY)
    with pytest.raises(InputError, match="was trained on other weights than those of bundled in"):
        tuned_lens(other, STORY, lens)


def test_it_is_not_for_a_model_of_another_shape(runner, lens):
    with pytest.raises(InputError, match="does not fit random, which has 3 layers of width 24"):
        tuned_lens(runner, "the cat", lens)


def test_a_missing_or_damaged_file_is_one_line(bundled, lens, tmp_path, monkeypatch):
    whole = (shipped.BUNDLED / shipped.LENS_FILE).read_bytes()
    monkeypatch.setattr(shipped, "BUNDLED", tmp_path)
    for content in (None, b"", b"{}", whole[: len(whole) // 2], whole[:-1], whole + b"x"):
        if content is not None:
            (tmp_path / shipped.LENS_FILE).write_bytes(content)
        for read in (lambda: TunedLens.load("bundled"), lambda: tuned_lens(bundled, STORY)):
            with pytest.raises(
                CheckpointError, match=rf"^.*{shipped.LENS_FILE}: not a tuned lens that can be read"
            ) as caught:
                read()
            assert "\n" not in str(caught.value)
    replace(lens, sha256=("0" * 64,)).save(tmp_path / shipped.LENS_FILE)
    with pytest.raises(InputError, match="no tuned lens ships for the weights of bundled"):
        tuned_lens(bundled, STORY)


def test_an_exported_file_is_read_through_it_without_torch(bundled, bundled_file, lens):
    file = bundled_file(taps=TAPS)
    script = (
        "import sys; sys.modules['torch'] = None\n"
        "from exporters import open_onnx\n"
        "from probes import TunedLens, tuned_lens\n"
        f"runner = open_onnx({str(file)!r}, device='cpu')\n"
        f"print(tuned_lens(runner, {STORY!r}, top_k=1).to_json())\n"
        "assert TunedLens.load('bundled').sha256"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    want = tuned_lens(open_onnx(file, device="cpu"), STORY, lens, top_k=1)
    assert done.stdout.strip() == want.to_json().strip()
