"""The model against transformers, and every tap against its neighbours."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch

import gpt2kit
from gpt2kit import GPT2, TorchRunner
from gpt2kit.config import ACTIVATIONS
from gpt2kit.taps import tap_axes
from gpt2kit.torch_engine.read import read_safetensors
from tests.by_hand import forward
from tests.conftest import CONFIG, close, random_ids, random_model

transformers = pytest.importorskip("transformers")

SMALL = {
    "vocab_size": 61,
    "n_positions": 24,
    "n_embd": 24,
    "n_layer": 3,
    "n_head": 3,
    "bos_token_id": 60,
    "eos_token_id": 60,
}
VARIANTS = [
    {},
    {"n_embd": 8, "n_layer": 1, "n_head": 1},
    {"n_embd": 40, "n_layer": 2, "n_head": 5},
    {"n_embd": 32, "n_layer": 5, "n_head": 16},
    {"n_inner": 17},
    {"scale_attn_weights": False},
    {"scale_attn_by_inverse_layer_idx": True},
    {"scale_attn_weights": False, "scale_attn_by_inverse_layer_idx": True},
    {"tie_word_embeddings": False},
    {"layer_norm_epsilon": 0.1},
    *({"activation_function": name} for name in ACTIVATIONS),
]


def reference(dtype=torch.float32, **change):
    """A random GPT-2 of transformers, every weight drawn."""
    torch.manual_seed(0)
    config = transformers.GPT2Config(**(SMALL | change), attn_implementation="eager")
    model = transformers.GPT2LMHeadModel(config).eval().to(dtype)
    for weight in model.parameters():
        weight.data.normal_(std=0.3)
    return model


def agree(model, folder, dtype: str, tolerance: float) -> None:
    """Logits, hidden states, attentions, keys and values of `model` and of what we load."""
    ids = random_ids(2, 11, vocab=60)
    with torch.no_grad():
        want = model(
            torch.as_tensor(ids),
            output_hidden_states=True,
            output_attentions=True,
            use_cache=True,
        )
    ours = gpt2kit.load(folder, device="cpu", dtype=dtype)
    run = ours.run(ids, taps="*", cache=ours.new_cache(2))
    n_layer = ours.config.n_layer
    close(run.logits, want.logits, tolerance)
    close(ours.run(ids).logits, want.logits, tolerance)  # fused attention, as no tap needs scores
    streams = [f"blocks.{i}.resid_pre" for i in range(n_layer)] + ["ln_f"]
    for name, hidden in zip(streams, want.hidden_states, strict=True):
        close(run.taps[name], hidden, tolerance)
    for i in range(n_layer):
        past = want.past_key_values.layers[i]
        close(run.taps[f"blocks.{i}.pattern"], want.attentions[i], tolerance)
        close(run.taps[f"blocks.{i}.k"].swapaxes(1, 2), past.keys, tolerance)
        close(run.taps[f"blocks.{i}.v"].swapaxes(1, 2), past.values, tolerance)
        close(run.cache.keys[i, :, :, :11], past.keys, tolerance)
        close(run.cache.values[i, :, :, :11], past.values, tolerance)


@pytest.mark.parametrize(
    ("dtype", "tolerance"), [("float32", 1e-4), ("float64", 1e-9)], ids=["fp32", "fp64"]
)
@pytest.mark.parametrize("change", VARIANTS, ids=str)
def test_equals_transformers(tmp_path, change, dtype, tolerance):
    model = reference(getattr(torch, dtype), **change)
    model.save_pretrained(tmp_path)
    agree(model, tmp_path, dtype, tolerance)


def test_equals_transformers_with_upcast_attention(tmp_path):
    model = reference(reorder_and_upcast_attn=True)  # transformers has this in float32 alone
    model.save_pretrained(tmp_path)
    agree(model, tmp_path, "float32", 1e-4)


@pytest.mark.parametrize("way", ["no prefix", "sharded", "bin", "old bin", "sharded bin"])
def test_reads_every_layout_of_a_checkpoint(tmp_path, way):
    model = reference()
    if way == "no prefix":
        model.transformer.save_pretrained(tmp_path)
        names = read_safetensors(tmp_path / "model.safetensors")
        assert not any(name.startswith("transformer.") for name in names)
    elif way == "sharded":
        model.save_pretrained(tmp_path, max_shard_size="30KB")
        assert len(list(tmp_path.glob("*.safetensors"))) > 2
    else:
        model.config.save_pretrained(tmp_path)
        save_bin(model.state_dict(), tmp_path, way)
    agree(model, tmp_path, "float32", 1e-4)


def save_bin(weights, folder, way):
    # Old checkpoints carry their causal masks along.
    weights["transformer.h.0.attn.bias"] = torch.ones(1, 1, 24, 24, dtype=torch.uint8).tril()
    weights["transformer.h.0.attn.masked_bias"] = torch.tensor(-1e4)
    if way != "sharded bin":
        file = folder / "pytorch_model.bin"
        torch.save(weights, file, _use_new_zipfile_serialization=way == "bin")
        return
    names = sorted(weights)
    half = {"a.bin": names[::2], "b.bin": names[1::2]}
    for file, part in half.items():
        torch.save({name: weights[name] for name in part}, folder / file)
    where = {name: file for file, part in half.items() for name in part}
    index = json.dumps({"weight_map": where})
    (folder / "pytorch_model.bin.index.json").write_text(index)


def test_a_padded_batch_equals_transformers_on_each_row_alone(tmp_path):
    model = reference()
    model.save_pretrained(tmp_path)
    rows = [random_ids(n, seed=n, vocab=60) for n in (3, 11, 1, 7)]
    run = gpt2kit.load(tmp_path, device="cpu").run(rows)
    for row, logits in zip(rows, run.logits, strict=True):
        with torch.no_grad():
            want = model(torch.as_tensor(row)[None]).logits[0]
        close(logits[: len(row)], want)


def test_every_tap_equals_the_plain_computation(runner, torch_runner):
    ids = random_ids(2, 13)
    run, want = runner.run(ids, taps="*"), forward(torch_runner.model, ids)
    assert list(run.taps) == list(tap_axes(3))
    assert set(want) == {*run.taps, "logits"}
    close(run.logits, want["logits"])
    for name, value in run.taps.items():
        if name.endswith("attn_scores"):  # what is above the diagonal is not promised
            seen = np.tril(np.ones((13, 13), bool))
            close(value[..., seen], want[name][..., seen], 3e-4)
        else:
            close(value, want[name], 3e-4)


def test_every_tap_equals_the_plain_computation_in_float64(double):
    ids = random_ids(2, 13)
    run, want = double.run(ids, taps="*"), forward(double.model, ids)
    close(run.logits, want["logits"], 1e-9)
    close(double.run(ids).logits, want["logits"], 1e-9)
    for name, value in run.taps.items():
        close(value, want[name], 1e-9)


@pytest.mark.parametrize("layer", range(3))
def test_a_tap_follows_from_its_neighbours(runner, torch_runner, layer):
    run = runner.run(random_ids(2, 9), taps="*")
    weights = {k: x.numpy() for k, x in torch_runner.model.state_dict().items()}
    block = [name.removeprefix("blocks.0.") for name in tap_axes(1) if name.startswith("blocks")]
    t = {name: run.taps[f"blocks.{layer}.{name}"] for name in block}
    h = f"h.{layer}"

    def normed(x, scale, name):
        centred = x - x.mean(-1, keepdims=True)
        return centred / scale * weights[f"{name}.weight"] + weights[f"{name}.bias"]

    def linear(x, name):
        return x @ weights[f"{name}.weight"] + weights[f"{name}.bias"]

    if layer == 0:
        close(t["resid_pre"], run.taps["embed"] + run.taps["pos_embed"])
    qkv = linear(normed(t["resid_pre"], t["ln_1_scale"], f"{h}.ln_1"), f"{h}.attn.c_attn")
    close(np.concatenate([t[x].reshape(2, 9, -1) for x in "qkv"], -1), qkv)
    seen = np.tril(np.ones((9, 9), bool))
    scores = np.einsum("bqhe,bkhe->bhqk", t["q"], t["k"]) / np.sqrt(8)
    close(t["attn_scores"][..., seen], scores[..., seen])
    odds = np.where(seen, np.exp(scores), 0)
    close(t["pattern"], odds / odds.sum(-1, keepdims=True))
    close(t["z"], np.einsum("bhqk,bkhe->bqhe", t["pattern"], t["v"]))
    w = weights[f"{h}.attn.c_proj.weight"].reshape(3, 8, 24)
    close(t["head_out"], np.einsum("bqhe,hed->bqhd", t["z"], w))
    close(t["attn_out"], t["head_out"].sum(2) + weights[f"{h}.attn.c_proj.bias"])
    close(t["resid_mid"], t["resid_pre"] + t["attn_out"])
    close(
        t["mlp_pre"], linear(normed(t["resid_mid"], t["ln_2_scale"], f"{h}.ln_2"), f"{h}.mlp.c_fc")
    )
    close(t["mlp_post"], torch_runner.model.h[layer].mlp.act(torch.from_numpy(t["mlp_pre"])))
    close(t["mlp_out"], linear(t["mlp_post"], f"{h}.mlp.c_proj"))
    close(t["resid_post"], t["resid_mid"] + t["mlp_out"])
    for name, x in (("ln_1_scale", "resid_pre"), ("ln_2_scale", "resid_mid")):
        close(t[name], np.sqrt(t[x].var(-1, keepdims=True) + 1e-5))


def test_the_end_of_the_model_follows_from_the_last_residual(runner, torch_runner):
    run = runner.run(random_ids(2, 9), taps=["blocks.-1.resid_post", "ln_f", "ln_f_scale"])
    ln_f, last = torch_runner.model.ln_f, run.taps["blocks.2.resid_post"]
    scale = np.sqrt(last.var(-1, keepdims=True) + 1e-5)
    close(run.taps["ln_f_scale"], scale)
    normed = (last - last.mean(-1, keepdims=True)) / scale
    close(run.taps["ln_f"], normed * ln_f.weight.numpy() + ln_f.bias.numpy())
    close(run.logits, run.taps["ln_f"] @ torch_runner.model.wte.weight.numpy().T)


@pytest.mark.parametrize("name", tap_axes(3))
def test_reading_one_tap_gives_that_tap_and_leaves_the_logits(runner, name):
    ids, runner = random_ids(2, 7), runner
    run, everything = runner.run(ids, taps=name), runner.run(ids, taps="*")
    assert list(run.taps) == [name]
    close(run.taps[name], everything.taps[name], 1e-4)
    close(run.logits, runner.run(ids).logits, 1e-4)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_comes_back_as_float32_and_is_near(dtype):
    ids = random_ids(2, 9)
    want = TorchRunner(random_model()).run(ids)
    run = TorchRunner(random_model(dtype=dtype)).run(ids, taps="*")
    assert run.logits.dtype == np.float32
    assert {x.dtype for x in run.taps.values()} == {np.dtype(np.float32)}
    assert np.abs(run.logits - want.logits).max() < 0.05 * np.abs(want.logits).max()


def test_the_module_itself_gives_tensors_with_gradients():
    model = random_model().requires_grad_(True)
    out = model(torch.as_tensor(random_ids(1, 5)), taps=["blocks.1.z"], last_only=True)
    assert out.logits.shape == (1, 1, CONFIG.vocab_size)
    out.logits.sum().backward()
    assert model.wte.weight.grad is not None
    assert out.taps["blocks.1.z"].requires_grad


def test_two_spellings_of_one_tap_both_edit_in_the_module():
    model, ids = random_model(), torch.as_tensor(random_ids(1, 5))
    both = {"blocks.1.resid_pre": lambda x: x * 2, "blocks.0.resid_post": lambda x: x + 1}
    once = {"blocks.0.resid_post": lambda x: x * 2 + 1}
    close(model(ids, edits=both).logits, model(ids, edits=once).logits)


def test_module_names_are_those_of_the_checkpoint():
    config = transformers.GPT2Config(**SMALL, tie_word_embeddings=False)
    theirs = transformers.GPT2LMHeadModel(config).state_dict()
    ours = GPT2(gpt2kit.GPT2Config.from_hf(config.to_dict())).state_dict()
    shapes = {name.removeprefix("transformer."): x.shape for name, x in theirs.items()}
    assert {name: x.shape for name, x in ours.items()} == shapes


def test_tied_weights_are_one_matrix():
    tied = random_model()
    assert tied.unembedding is tied.wte.weight
    assert "lm_head.weight" not in tied.state_dict()
    assert "lm_head.weight" in random_model(replace(CONFIG, tie_word_embeddings=False)).state_dict()
