"""Rewritten weights: equal predictions, and each step does what its docstring says."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from gpt2kit import TorchRunner, load
from gpt2kit.errors import InputError
from gpt2kit.runner import Source
from probes.core.processed_weights import processed
from tests.by_hand import forward
from tests.conftest import CONFIG, byte_tokenizer, close, random_ids, random_model

IDS = random_ids(2, 17)
SHAPES = {
    "tied": CONFIG,
    "untied": replace(CONFIG, tie_word_embeddings=False),
    "inverse": replace(CONFIG, scale_attn_by_inverse_layer_idx=True),
}
STEPS = ["fold_ln", "centre_writing", "centre_unembed"]


@pytest.fixture(scope="module", params=SHAPES)
def raw(request) -> TorchRunner:
    model = random_model(SHAPES[request.param], seed=3, dtype=torch.float64)
    return TorchRunner(model, byte_tokenizer(), Source("random", "abc"))


def logprobs(logits: np.ndarray) -> np.ndarray:
    return torch.from_numpy(logits).log_softmax(-1).numpy()


def only(*steps: str) -> dict[str, bool]:
    return {step: step in steps for step in STEPS}


@pytest.mark.parametrize("steps", [STEPS, *([step] for step in STEPS), STEPS[:2], STEPS[1:]])
def test_log_probabilities_stay(raw, steps):
    new = processed(raw, **only(*steps))
    want = forward(raw.model, IDS)["logits"]
    got = new.run(IDS).logits
    close(logprobs(got), logprobs(want), 1e-9)
    close(forward(new.model, IDS)["logits"], got, 1e-9)
    if "centre_unembed" not in steps:
        close(got, want, 1e-9)
    else:  # it has done something: the mean logit is gone, and was not 0
        assert np.abs(got.mean(-1)).max() < 1e-9 < np.abs(want.mean(-1)).max()


def test_heads_and_neurons_stay_and_the_stream_is_centred(raw):
    taps = ["blocks.*.pattern", "blocks.*.z", "blocks.*.mlp_post", "blocks.*.resid_post"]
    before, after = (runner.run(IDS, taps=taps).taps for runner in (raw, processed(raw)))
    for name, want in before.items():
        if name.endswith("resid_post"):
            assert np.abs(want.mean(-1)).max() > 0.01
            want = want - want.mean(-1, keepdims=True)
        close(after[name], want, 1e-9)


def test_the_weights_are_as_promised(raw):
    old, new = raw.model.state_dict(), processed(raw).model.state_dict()
    for name, x in new.items():
        if ".ln_" in name:
            assert (x == float(name.endswith("weight"))).all(), name
        if name.startswith(("wte", "wpe")) or "c_proj" in name:
            assert x.mean(-1).abs().max() < 1e-12, name
    gain, bias = old["ln_f.weight"], old["ln_f.bias"]
    assert (new["ln_f.weight"] == 1).all()
    close(new["ln_f.bias"] * gain, bias, 1e-12)
    unembedding = raw.model.unembedding * gain
    close(new["lm_head.weight"], unembedding - unembedding.mean(0), 1e-12)
    i = CONFIG.n_layer - 1
    close(
        new[f"h.{i}.mlp.c_fc.weight"],
        torch.einsum("d,do->do", old[f"h.{i}.ln_2.weight"], old[f"h.{i}.mlp.c_fc.weight"]),
        1e-12,
    )


def test_a_step_that_is_off_changes_nothing_of_its_own(raw):
    old, new = raw.model.state_dict(), processed(raw, fold_ln=False).model.state_dict()
    for name in old:
        if "ln_" in name or "c_attn" in name or "c_fc" in name:
            assert torch.equal(new[name], old[name]), name
    new = processed(raw, centre_writing=False).model.state_dict()
    for name in old:
        if name.startswith(("wte", "wpe")) or "c_proj" in name:
            assert torch.equal(new[name], old[name]), name


def test_the_given_model_is_left_alone(raw):
    config, before = raw.config, {k: x.clone() for k, x in raw.model.state_dict().items()}
    new = processed(raw)
    for x in new.model.parameters():
        assert not x.requires_grad
        x.data.fill_(7)
    assert raw.config is raw.model.config is config
    assert raw.model.state_dict().keys() == before.keys()
    assert all(torch.equal(x, before[name]) for name, x in raw.model.state_dict().items())


def test_no_two_weights_of_the_new_model_share_memory(raw):
    for steps in ([step] for step in STEPS):
        model = processed(raw, **only(*steps)).model
        places = {x.untyped_storage().data_ptr() for x in model.parameters()}
        assert len(places) == len(list(model.parameters()))


def test_gains_of_zero_are_exact_as_well():
    model = random_model(dtype=torch.float64)
    for norm in (model.h[0].ln_1, model.h[1].ln_2, model.ln_f):
        norm.weight.data[[0, 5]] = 0
    model.ln_f.weight.data[3] *= -1
    raw = TorchRunner(model)
    new = processed(raw)
    assert new.model.ln_f.weight.tolist()[:6] == [0, 1, 1, 1, 1, 0]
    close(logprobs(new.run(IDS).logits), logprobs(raw.run(IDS).logits), 1e-9)
    close(processed(raw, **only("fold_ln")).run(IDS).logits, raw.run(IDS).logits, 1e-9)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_dtypes_are_kept_and_equal_within_their_rounding(dtype):
    raw = TorchRunner(random_model(dtype=dtype))
    new = processed(raw)
    assert {x.dtype for x in new.model.parameters()} == {dtype}
    assert new.dtype == raw.dtype
    spread = np.abs(logprobs(new.run(IDS).logits) - logprobs(raw.run(IDS).logits))
    assert np.median(spread) < 20 * torch.finfo(dtype).eps


def test_the_bundled_model():
    raw = load("bundled", device="cpu", dtype="float64")
    new = processed(raw)
    ids = raw.tokenizer.encode("One day, Lily and her mom went to the park.")
    close(logprobs(new.run(ids).logits), logprobs(raw.run(ids).logits), 1e-9)
    assert raw.config.tie_word_embeddings
    assert not new.config.tie_word_embeddings
    assert new.tokenizer is raw.tokenizer


def test_the_source_says_what_was_done(raw):
    assert str(processed(raw).source) == (
        "random (folded, writing centred, unembedding centred)@abc"
    )
    assert str(processed(raw, **only("fold_ln")).source) == "random (folded)@abc"
    assert raw.source == Source("random", "abc")


def test_nothing_to_do_is_refused(raw):
    with pytest.raises(InputError, match="all three steps are off"):
        processed(raw, **only())


def test_processing_twice_changes_no_prediction(raw):
    twice = processed(processed(raw))
    close(logprobs(twice.run(IDS).logits), logprobs(raw.run(IDS).logits), 1e-9)
