"""The tuned lens: what it computes, what training brings, and which files it takes."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

import gpt2kit
from exporters import export_onnx, open_onnx
from gpt2kit import TorchRunner
from gpt2kit.errors import CheckpointError, InputError, TapError
from gpt2kit.runner import Source
from probes import logit_lens
from probes.lens.head_lens import head_lens
from probes.lens.tuned_lens import TunedLens, tuned_lens
from probes.lens.tuned_training import train_tuned_lens
from tests.conftest import CONFIG, byte_tokenizer, close, random_ids, random_model

PROMPT = "the cat, the hat"
ROWS = ["blocks.0.resid_pre", *(f"blocks.{i}.resid_post" for i in range(CONFIG.n_layer))]
TEXT = (Path(gpt2kit.__file__).parents[1] / "exporters" / "parity" / "held_out.txt").read_text(
    "utf-8"
)


@pytest.fixture(scope="module")
def lens(torch_runner) -> TunedLens:
    """Translators at random."""
    rng = np.random.default_rng(0)
    shape = CONFIG.n_layer, CONFIG.n_embd, CONFIG.n_embd
    weight = rng.normal(size=shape).astype(np.float32) * 0.2
    bias = rng.normal(size=shape[:2]).astype(np.float32)
    return TunedLens("random", (torch_runner.weights_sha256,), weight, bias)


def read_by_hand(runner: TorchRunner, x: torch.Tensor) -> torch.Tensor:
    """Streams (…, d_model) in float64 -> log-probabilities."""
    w = {name: value.double() for name, value in runner.model.state_dict().items()}
    centred = x - x.mean(-1, keepdim=True)
    scale = (centred.pow(2).mean(-1, keepdim=True) + runner.config.layer_norm_epsilon).sqrt()
    return ((centred / scale * w["ln_f.weight"] + w["ln_f.bias"]) @ w["wte.weight"].T).log_softmax(
        -1
    )


# What it computes


def test_every_number_is_that_of_the_translated_stream(torch_runner, runner, lens):
    read = tuned_lens(runner, PROMPT, lens, top_k=3, targets=["a"])
    assert (read.kind, read.source) == ("tuned lens", "random")
    assert str(read).startswith("tuned lens  random  float32")
    assert json.loads(read.to_json())["kind"] == "tuned lens"
    assert list(read.rows) == ROWS
    taps = torch_runner.run(read.prompt_ids, taps=ROWS).taps
    streams = [torch.from_numpy(taps[row][0]).double() for row in ROWS]
    for i in range(CONFIG.n_layer):
        a, b = torch.from_numpy(lens.weight[i]).double(), torch.from_numpy(lens.bias[i]).double()
        streams[i] = streams[i] + torch.einsum("pd,ed->pe", streams[i], a) + b
    log_p = read_by_hand(torch_runner, torch.stack(streams))
    p, final = log_p.exp(), log_p[-1]
    close(read.entropy, -(p * log_p).sum(-1))
    close(read.kl, (final.exp() * (final - log_p)).sum(-1))
    close(read.top_logprobs, log_p.topk(3).values)
    close(read.target_logprobs[..., 0], log_p[..., torch_runner.tokenizer.single("a")])
    assert read.kl[:-1].min() > 1e-3
    close(read.kl[-1], np.zeros(len(read.positions)))


def test_without_a_change_it_is_the_logit_lens(runner):
    plain = logit_lens(runner, PROMPT, top_k=4, targets=["a", "b"], positions=[1, -1])
    read = tuned_lens(
        runner, PROMPT, TunedLens.identity(runner), top_k=4, targets=["a", "b"], positions=[1, -1]
    )
    for name, value in vars(plain).items():
        if name != "kind":
            np.testing.assert_array_equal(getattr(read, name), value, err_msg=name)


def test_float64_stays_float64(double):
    lens = TunedLens.identity(double)
    resid = np.random.default_rng(0).normal(size=(CONFIG.n_layer + 1, 5, CONFIG.n_embd))
    assert lens.translate(resid).dtype == np.float64
    np.testing.assert_array_equal(lens.translate(resid), resid)
    with pytest.raises(InputError, match="do not fit TunedLens"):
        lens.translate(resid[1:])


# Training


def test_training_brings_every_layer_nearer_to_the_final_one_on_text_not_trained_on(bundled):
    ids = bundled.tokenizer.encode(TEXT)
    held_out, seen = ids[:256], ids[256:]
    steps = []
    lens = train_tuned_lens(
        bundled, seen, steps=40, batch=2, length=96,
        on_progress=lambda step, losses: steps.append((step, losses)),
    )  # fmt: skip
    before = logit_lens(bundled, held_out, top_k=1).kl.mean(1)
    after = tuned_lens(bundled, held_out, lens, top_k=1).kl.mean(1)
    assert (after[:-1] < 0.9 * before[:-1]).all(), (before, after)
    assert [step for step, _ in steps] == list(range(1, 41))
    assert (steps[-1][1] < steps[0][1]).all()
    assert lens.sha256[0] == bundled.weights_sha256


def test_the_loss_is_the_kl_and_a_seed_gives_one_lens(torch_runner):
    ids = np.random.default_rng(0).integers(0, 250, 20)
    losses = []
    first, second, third = (
        train_tuned_lens(
            torch_runner, ids, steps=2, batch=2, length=20 - (seed == 1), seed=seed,
            on_progress=lambda _, x: losses.append(x),
        )
        for seed in (0, 0, 1)
    )  # fmt: skip
    np.testing.assert_array_equal(first.weight, second.weight)
    assert not np.array_equal(first.weight, third.weight)
    # one piece is the whole text, so that the loss before the first step is known
    close(losses[0], logit_lens(torch_runner, ids, top_k=1).kl[:-1].mean(1))
    assert all(not p.requires_grad and p.grad is None for p in torch_runner.model.parameters())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"steps": 0}, "steps = 0 must be at least 1"),
        ({"lr": float("nan")}, "lr = nan must be a number above 0"),
        ({"length": 41}, "length = 41 must be from 1 to 40"),
        ({"length": 39}, "the text has 11 tokens, one piece is 39"),
    ],
)
def test_bad_options_of_training_are_refused(torch_runner, options, message):
    with pytest.raises(InputError, match=message):
        train_tuned_lens(torch_runner, "x" * 11, **{"length": 8} | options)


def test_text_needs_a_tokenizer_and_may_be_ids(torch_runner):
    nameless = TorchRunner(torch_runner.model)
    with pytest.raises(InputError, match="give token ids"):
        train_tuned_lens(nameless, "x" * 11, length=8)
    ids = torch_runner.tokenizer.encode("x" * 11)
    by_ids = train_tuned_lens(nameless, ids, steps=1, length=8)
    by_text = train_tuned_lens(torch_runner, "x" * 11, steps=1, length=8)
    np.testing.assert_array_equal(by_ids.bias, by_text.bias)


def test_training_works_within_inference_mode(torch_runner):
    ids = random_ids(20)
    given = {"steps": 2, "batch": 1, "length": 8}
    with torch.inference_mode():
        within = train_tuned_lens(torch_runner, ids, **given)
        assert torch.is_inference_mode_enabled()
    np.testing.assert_array_equal(
        within.weight, train_tuned_lens(torch_runner, ids, **given).weight
    )
    assert within.weight.any()


def test_a_lens_is_data(lens):
    data = json.loads(lens.to_json())
    assert data["sha256"] == list(lens.sha256)
    close(data["bias"], lens.bias)
    assert str(lens).strip() == repr(lens)


# Files


def test_a_saved_lens_comes_back_and_fits_only_its_model(tmp_path, runner, lens):
    lens.save(tmp_path / "lens.safetensors")
    back = TunedLens.load(tmp_path / "lens.safetensors")
    assert (back.source, back.sha256) == (lens.source, lens.sha256)
    np.testing.assert_array_equal(back.weight, lens.weight)
    np.testing.assert_array_equal(back.bias, lens.bias)
    tuned_lens(runner, PROMPT, back)
    other = TorchRunner(random_model(seed=1), byte_tokenizer(), Source("other"))
    with pytest.raises(InputError, match="trained on other weights than those of other"):
        tuned_lens(other, PROMPT, back)
    with pytest.raises(InputError, match="other weights"):
        tuned_lens(runner, PROMPT, replace(back, sha256=("0" * 64,)))


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_a_lens_serves_its_weights_in_half_precision_but_not_the_other_way(
    tmp_path, torch_runner, dtype
):
    ids = random_ids(20)
    trained = train_tuned_lens(torch_runner, ids, steps=1, batch=1, length=8)
    trained.save(tmp_path / "lens")
    back = TunedLens.load(tmp_path / "lens")
    assert back.sha256 == trained.sha256
    half = TorchRunner(random_model(dtype=getattr(torch, dtype)), byte_tokenizer(), Source("half"))
    got, want = tuned_lens(half, PROMPT, back), tuned_lens(torch_runner, PROMPT, back)
    assert got.dtype == dtype
    close(got.entropy, want.entropy, 0.1)
    of_half = train_tuned_lens(half, ids, steps=1, batch=1, length=8)
    tuned_lens(half, PROMPT, of_half)
    with pytest.raises(InputError, match="other weights than those of random in float32"):
        tuned_lens(torch_runner, PROMPT, of_half)
    other = random_model(seed=1, dtype=getattr(torch, dtype))
    with pytest.raises(InputError, match=f"other weights than those of unnamed in {dtype}"):
        tuned_lens(TorchRunner(other, byte_tokenizer()), PROMPT, back)


def test_a_lens_serves_an_exported_file_in_half_precision(tmp_path, torch_runner):
    lens = TunedLens.identity(torch_runner)
    export_onnx(torch_runner, tmp_path / "half.onnx", taps="*.resid_*", dtype="float16")
    half = open_onnx(tmp_path / "half.onnx", device="cpu")
    assert (half.dtype, tuned_lens(half, PROMPT, lens).dtype) == ("float16", "float16")


def test_a_lens_of_other_sizes_is_refused(bundled, lens):
    with pytest.raises(InputError, match="does not fit bundled, which has 6 layers of width 192"):
        tuned_lens(bundled, PROMPT, replace(lens, sha256=()))


def test_files_that_are_no_lens_are_refused(tmp_path):
    from safetensors.numpy import save_file

    for file in (tmp_path / "none", tmp_path / "text"):
        with pytest.raises(CheckpointError, match=f"{file.name}: not a tuned lens that can be"):
            TunedLens.load(file)
        (tmp_path / "text").write_text("{}")
    save_file({"weight": np.zeros(3), "bias": np.zeros(3)}, tmp_path / "foreign")
    with pytest.raises(CheckpointError, match="not a tuned lens that gpt2kit saved"):
        TunedLens.load(tmp_path / "foreign")
    save_file({"weight": np.zeros(3)}, tmp_path / "half")
    with pytest.raises(CheckpointError, match="half: not a tuned lens that can be read"):
        TunedLens.load(tmp_path / "half")


def published(folder: Path, lens: TunedLens, bias: bool = True, **change) -> Path:
    """The lens as the authors of the paper store theirs: a ModuleList of Linear layers."""
    folder.mkdir(exist_ok=True)
    modules = torch.nn.ModuleList(
        torch.nn.Linear(CONFIG.n_embd, CONFIG.n_embd, bias=bias) for _ in lens.weight
    )
    for module, a, b in zip(modules, lens.weight, lens.bias, strict=True):
        module.weight.data = torch.from_numpy(a)
        if bias:
            module.bias.data = torch.from_numpy(b)
    torch.save(modules.state_dict(), folder / "params.pt")
    config = {
        "base_model_name_or_path": "gpt2", "d_model": CONFIG.n_embd, "bias": bias,
        "num_hidden_layers": CONFIG.n_layer, "base_model_revision": None, "unembed_hash": "0",
        "lens_type": "linear_tuned_lens",
    }  # fmt: skip
    (folder / "config.json").write_text(json.dumps(config | change))
    return folder


def test_a_published_lens_is_read(tmp_path, runner, lens):
    with pytest.warns(UserWarning, match="does not say which weights .* so read gpt2 with it") as w:
        found = TunedLens.load(published(tmp_path, lens))
    assert len(w) == 1
    assert "\n" not in str(w[0].message)
    assert (found.source, found.sha256) == ("gpt2", ())
    own = tuned_lens(runner, PROMPT, lens)
    close(tuned_lens(runner, PROMPT, found).top_logprobs, own.top_logprobs)
    with pytest.warns(UserWarning, match="only its sizes are checked"):
        bare = TunedLens.load(published(tmp_path, lens, bias=False))
    np.testing.assert_array_equal(bare.weight, lens.weight)
    assert not bare.bias.any()


def test_a_published_lens_that_does_not_hold_together_is_refused(tmp_path, lens):
    with pytest.raises(CheckpointError, match="not a tuned lens that can be read"):
        TunedLens.load(tmp_path)
    with pytest.raises(CheckpointError, match=r"params\.pt has 3\.bias missing"):
        TunedLens.load(published(tmp_path, lens, num_hidden_layers=4))
    with pytest.raises(CheckpointError, match=r"0\.bias \(24,\).* asks for \(25,\)"):
        TunedLens.load(published(tmp_path, lens, d_model=25))
    with pytest.raises(CheckpointError, match=r"asks for no such tensor"):
        TunedLens.load(published(tmp_path, lens, num_hidden_layers=2))
    torch.save({"0.weight": Tampered()}, tmp_path / "params.pt")
    with pytest.raises(CheckpointError, match="not a tuned lens that can be read"):
        TunedLens.load(tmp_path)


class Tampered:
    """Code in a pickle, which must not run."""

    def __reduce__(self):
        return print, ("ran",)


# One head's write


def test_a_head_is_read_as_if_it_were_the_stream(torch_runner, runner):
    read = head_lens(runner, PROMPT, -1, 1, top_k=3, targets=["a", "b"], positions=[2, -1])
    assert (read.layer, read.head) == (2, 1)
    ids = torch_runner.tokenizer.encode(PROMPT)
    w = torch_runner.model.state_dict()["h.2.attn.c_proj.weight"].double()
    d = CONFIG.d_head
    z = torch.from_numpy(torch_runner.run(ids, taps="blocks.2.z").taps["blocks.2.z"]).double()
    write = z[0, read.positions, 1] @ w[d : 2 * d]
    log_p = read_by_hand(torch_runner, write)
    close(read.norms, write.norm(dim=-1))
    close(read.top_logprobs, log_p.topk(3).values)
    close(log_p.gather(-1, torch.from_numpy(read.top_ids)), read.top_logprobs)
    own = [torch_runner.tokenizer.single(text) for text in "ab"]
    close(read.target_logprobs, log_p[:, own])
    close(read.target_ranks, (log_p[:, None] > log_p[:, own, None] + 1e-6).sum(-1))
    assert "likeliest" in str(read)
    assert json.loads(read.to_json())["head"] == 1
    assert head_lens(runner, PROMPT, 2, 1).target_ranks.shape == (len(ids), 0)


def test_heads_that_are_not_there_are_refused(torch_runner):
    with pytest.raises(InputError, match="head 3 does not exist; a layer has heads 0 to 2"):
        head_lens(torch_runner, PROMPT, 0, 3)
    with pytest.raises(TapError, match="the model has layers 0 to 2"):
        head_lens(torch_runner, PROMPT, 3, 0)
