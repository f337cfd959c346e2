"""The tool that fits the shipped lens, on a small model and a few sentences."""

from dataclasses import replace

import numpy as np
import pytest
from corpus import Stories
from fit_lens import fit_lens, measure_lens
from optimize import initialise
from safetensors import safe_open
from train_bundled import write_model

import gpt2kit
from gpt2kit.model import GPT2
from gpt2kit.shipped import LENS_FILE
from gpt2kit.torch_engine.dtypes import DTYPES
from probes import TunedLens, logit_lens, tuned_lens
from tests.tools.support import SMALL


@pytest.fixture(scope="module")
def folder(corpus, tmp_path_factory):
    """A model that was not trained, as train_bundled.py writes it."""
    model = GPT2(SMALL.config)
    initialise(model, seed=0)
    folder = tmp_path_factory.mktemp("model")
    write_model(folder, model, corpus.tokenizer)
    return folder


def test_the_lens_is_written_beside_its_model_and_measured(folder, corpus, capsys):
    unseen = replace(corpus, held_out=Stories([], 0))
    fit_lens(folder, unseen, steps=100)
    lens, runner = TunedLens.load(folder / LENS_FILE), gpt2kit.load(folder, device="cpu")
    loss = measure_lens(runner, folder, unseen)
    rows = [story[: SMALL.n_positions] for story in corpus.validation.tokens]
    logit = np.concatenate([logit_lens(runner, row).kl for row in rows], axis=1)
    tuned = np.concatenate([tuned_lens(runner, row, lens).kl for row in rows], axis=1)
    np.testing.assert_allclose(loss.logit, logit.mean(1)[:-1], rtol=1e-5)
    np.testing.assert_allclose(loss.tuned, tuned.mean(1)[:-1], rtol=1e-5)
    assert (loss.tuned < loss.logit).all()
    assert len(loss.table().splitlines()) == 2 + SMALL.n_layer
    assert f"| `blocks.0.resid_post` | {loss.logit[1]:.3f} |" in loss.table()
    assert capsys.readouterr().out.startswith("lens step   100  KL ")


def test_the_lens_is_stored_in_half_precision_and_serves_every_dtype(folder, corpus):
    fit_lens(folder, corpus, steps=2)
    with safe_open(folder / LENS_FILE, framework="numpy") as file:
        assert {file.get_tensor(name).dtype for name in ("weight", "bias")} == {np.dtype("float16")}
    lens = TunedLens.load(folder / LENS_FILE)
    assert (lens.source, lens.weight.dtype, lens.bias.dtype) == ("bundled", "float32", "float32")
    for dtype in DTYPES:
        lens.check(gpt2kit.load(folder, device="cpu", dtype=dtype))


def test_a_seed_gives_one_lens(folder, corpus):
    lenses = []
    for seed in (1, 1, 2):
        fit_lens(folder, corpus, steps=2, seed=seed)
        lenses.append(TunedLens.load(folder / LENS_FILE))
    first, again, other = lenses
    assert first == again
    assert first != other


def test_stories_of_another_tokenizer_are_refused(folder, corpus, tmp_path):
    text = (folder / "tokenizer.json").read_text(encoding="utf-8")
    (tmp_path / "tokenizer.json").write_text(text.replace('"!"', '"new"'), encoding="utf-8")
    with pytest.raises(SystemExit, match="its tokenizer was not trained on these stories"):
        fit_lens(tmp_path, corpus, steps=2)
