"""Names of tensors as they are in the wild: prefixes, task heads, doubles; and wrong sizes."""

import json
import time
from functools import partial

import pytest
import torch
from safetensors.torch import save_file

import gpt2kit
from gpt2kit import GPT2
from gpt2kit.errors import CheckpointError, GPT2KitError
from tests.conftest import CONFIG, close, random_ids, random_model, write_checkpoint

IDS = random_ids(2, 6)
MASK = "h.0.attn.bias"
WTE = "_orig_mod.transformer.wte.weight"


def load(folder):
    return gpt2kit.load(folder, device="cpu")


def weights() -> dict[str, torch.Tensor]:
    """Of `random_model`, under the names of a whole transformers model."""
    own = {f"transformer.{name}": x for name, x in random_model().state_dict().items()}
    return own | {"lm_head.weight": own["transformer.wte.weight"].clone()}


def write(folder, named: dict, kind: str = "model.safetensors") -> None:
    write_checkpoint(folder)
    (folder / "model.safetensors").unlink()
    if kind.endswith(".bin"):
        torch.save(named, folder / kind)
    else:
        save_file(named, folder / kind)


def check_reads(folder) -> None:
    close(load(folder).run(IDS).logits, random_model()(torch.as_tensor(IDS)).logits)


def refused(folder, words: str) -> None:
    with pytest.raises(CheckpointError, match=words) as caught:
        load(folder)
    assert len(str(caught.value).splitlines()) == 1


PREFIXES = ["_orig_mod.", "module.", "model.", "_orig_mod.module.", "module._orig_mod.", "a.b."]


@pytest.mark.parametrize("kind", ["model.safetensors", "pytorch_model.bin"])
@pytest.mark.parametrize("prefix", PREFIXES)
def test_every_name_may_stand_under_one_prefix(tmp_path, kind, prefix):
    write(tmp_path, {prefix + name: x for name, x in weights().items()}, kind)
    check_reads(tmp_path)


@pytest.mark.parametrize("prefix", [*PREFIXES, "transformer.", "model.transformer."])
def test_a_model_without_a_head_may_too(tmp_path, prefix):
    write(tmp_path, {prefix + name: x for name, x in random_model().state_dict().items()})
    check_reads(tmp_path)


@pytest.mark.parametrize("prefix", ["_orig_mod.", "module.", "model."])
def test_a_part_of_the_names_may_have_a_prefix(tmp_path, prefix):
    named = weights()
    names = list(named)[::2]
    write(tmp_path, {prefix * (name in names) + name: x for name, x in named.items()})
    check_reads(tmp_path)


HEADS = {
    "GPT2ForSequenceClassification": "score.weight",
    "GPT2ForTokenClassification": "classifier.weight, classifier.bias",
    "GPT2ForQuestionAnswering": "qa_outputs.weight, qa_outputs.bias",
    "GPT2DoubleHeadsModel": "multiple_choice_head.summary.weight, multiple_choice_head.summary.bi",
}


@pytest.mark.parametrize("kind", HEADS)
def test_a_task_head_is_left_out_with_a_note(tmp_path, capsys, kind):
    transformers = pytest.importorskip("transformers")
    sizes = {"n_embd": 24, "n_layer": 2, "n_head": 2, "vocab_size": 50, "n_positions": 16}
    config = transformers.GPT2Config(**sizes, num_labels=1)
    torch.manual_seed(0)
    theirs = getattr(transformers, kind)(config).eval()
    theirs.save_pretrained(tmp_path)
    capsys.readouterr()
    ids = random_ids(2, 5, vocab=50)
    with torch.inference_mode():
        hidden = theirs.transformer(torch.as_tensor(ids)).last_hidden_state
    close(load(tmp_path).run(ids).logits, hidden @ theirs.transformer.wte.weight.detach().T)
    note = capsys.readouterr().err
    assert note.startswith(f"gpt2kit: {tmp_path.name}: the task head was left out (")
    assert all(name in note for name in HEADS[kind].split(", "))
    assert len(note.splitlines()) == 1


def test_a_model_without_a_task_head_has_no_note(tmp_path, capsys):
    write(tmp_path, weights())
    load(tmp_path)
    assert capsys.readouterr().err == ""


DOUBLES = [
    ("ln_f.bias", "transformer.ln_f.bias"),
    ("transformer.h.1.ln_1.weight", "model.h.1.ln_1.weight"),
    ("module.wpe.weight", "_orig_mod.module.wpe.weight"),
    ("lm_head.weight", "lm_head.decoder.weight"),
    ("transformer.wte.weight", "lm_head.decoder.weight"),
    ("transformer.wte.weight", "module.lm_head.weight"),
    ("transformer.wte.weight", "wte.weight"),
]


@pytest.mark.parametrize(("one", "other"), DOUBLES)
@pytest.mark.parametrize("turned", [False, True])
def test_two_names_of_one_tensor_must_agree(tmp_path, one, other, turned):
    own = {name.removeprefix("transformer."): x for name, x in weights().items()}
    del own["lm_head.weight"]
    key = one.removeprefix("module.").removeprefix("transformer.")
    value = own.pop("wte.weight" if key == "lm_head.weight" else key)
    for change, agree in ((0.0, True), (1.0, False)):
        pair = {one: value.clone(), other: value + change}
        if turned:
            pair = dict(reversed(pair.items()))
        write(tmp_path, own | pair, "pytorch_model.bin")  # which keeps the order
        if agree:
            check_reads(tmp_path)
        else:
            refused(tmp_path, f"({one}|{other}) differs from ({one}|{other}), but")


def test_two_shards_that_hold_one_tensor_must_agree(tmp_path):
    named = weights()
    names = list(named)
    halves = {"a.bin": names[:20], "b.bin": names[19:]}  # one name is in both
    write_checkpoint(tmp_path)
    (tmp_path / "model.safetensors").unlink()
    index = {name: file for file, part in halves.items() for name in part}
    (tmp_path / "pytorch_model.bin.index.json").write_text(json.dumps({"weight_map": index}))
    for file, part in halves.items():
        torch.save({name: named[name] for name in part}, tmp_path / file)
    check_reads(tmp_path)
    torch.save({name: named[name] + 1 for name in halves["b.bin"]}, tmp_path / "b.bin")
    refused(tmp_path, f"{names[19]} in b.bin differs from {names[19]} in a.bin")


def test_a_nanogpt_checkpoint_says_how_to_convert_it(tmp_path):
    checkpoint = {"model": {"_orig_mod.transformer.wte.weight": torch.zeros(3, 4)}}
    checkpoint["model_args"] = {"n_layer": 1, "bias": False}
    torch.save(checkpoint, tmp_path / "ckpt.pt")
    refused(tmp_path, "ckpt.pt: a nanoGPT checkpoint; to convert it, transpose")
    write_checkpoint(tmp_path)
    (tmp_path / "model.safetensors").unlink()
    refused(tmp_path, "ckpt.pt: a nanoGPT checkpoint; to convert it, transpose")
    (tmp_path / "ckpt.pt").rename(tmp_path / "pytorch_model.bin")
    refused(tmp_path, "pytorch_model.bin: a nanoGPT checkpoint; to convert it, transpose")


def same_context(change: dict) -> dict:
    """n_ctx is another name of n_positions."""
    return {"n_ctx": change["n_positions"]} if "n_positions" in change else {}


SIZES = ["n_layer", "n_positions", "vocab_size", "n_embd", "n_inner"]


@pytest.mark.parametrize("name", SIZES)
@pytest.mark.parametrize("size", [1_000_000, 600_000_000])
def test_sizes_are_compared_with_the_tensors_before_a_module_is_built(
    tmp_path, monkeypatch, name, size
):
    change = {name: 3 * size if name == "n_embd" else size}
    write_checkpoint(tmp_path, **change, **same_context(change))
    monkeypatch.setattr(GPT2, "__init__", lambda *_: pytest.fail("built"))
    started = time.perf_counter()
    words = "is missing from the weights" if name == "n_layer" else "config.json asks for"
    refused(tmp_path, words)
    assert time.perf_counter() - started < 2


@pytest.mark.parametrize("name", SIZES)
def test_a_size_beyond_all_tensors_is_one_line(tmp_path, name):
    write_checkpoint(tmp_path, **{name: 10**30}, **same_context({name: 10**30}))
    with pytest.raises(GPT2KitError, match=f"config.json: {name} = .*must be a positive integer"):
        load(tmp_path)


def test_the_layers_that_are_missing_are_counted(tmp_path):
    write_checkpoint(tmp_path, n_layer=1_000_000)
    tensors = 12 * (1_000_000 - CONFIG.n_layer)
    refused(tmp_path, rf"h.3.ln_1.weight \(24,\) is missing .* \(and {tensors - 1} more\)")


@pytest.mark.parametrize("name", [*SIZES, "n_head"])
@pytest.mark.parametrize("size", [0, -1, 1e30, "12", None, [12], True], ids=str)
def test_a_size_that_is_no_size_is_one_line(tmp_path, name, size):
    if (name, size) == ("n_inner", None):
        return
    write_checkpoint(tmp_path, **{name: size}, **same_context({name: size}))
    with pytest.raises(GPT2KitError, match=f"config.json: {name} = ") as caught:
        load(tmp_path)
    assert len(str(caught.value).splitlines()) == 1


def test_the_way_to_convert_a_nanogpt_checkpoint_is_right(tmp_path):
    """nanoGPT holds its matrices as nn.Linear does, (out, in), and may have no biases."""
    args = {"n_layer": 2, "n_head": 2, "n_embd": 16, "block_size": 8, "bias": False}
    names = {
        "attn.c_attn": (48, 16),
        "attn.c_proj": (16, 16),
        "mlp.c_fc": (64, 16),
        "mlp.c_proj": (16, 64),
    }
    torch.manual_seed(0)
    model = {"wte.weight": torch.randn(20, 16), "wpe.weight": torch.randn(8, 16)}
    for layer in range(2):
        model |= {f"h.{layer}.{name}.weight": torch.randn(shape) for name, shape in names.items()}
        model |= {f"h.{layer}.ln_{n}.weight": torch.rand(16) for n in (1, 2)}
    model["ln_f.weight"] = torch.rand(16)

    def by_hand(ids: torch.Tensor) -> torch.Tensor:  # as nanoGPT's own forward pass
        x = model["wte.weight"][ids] + model["wpe.weight"][: len(ids)]
        norm = partial(torch.nn.functional.layer_norm, normalized_shape=(16,))
        for layer in range(2):
            part = {name: model[f"h.{layer}.{name}.weight"] for name in (*names, "ln_1", "ln_2")}
            q, k, v = (
                y.view(len(ids), 2, 8).transpose(0, 1)
                for y in (norm(x, weight=part["ln_1"]) @ part["attn.c_attn"].T).split(16, -1)
            )
            y = torch.nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True)
            x = x + y.transpose(0, 1).flatten(1) @ part["attn.c_proj"].T
            hidden = torch.nn.functional.gelu(norm(x, weight=part["ln_2"]) @ part["mlp.c_fc"].T)
            x = x + hidden @ part["mlp.c_proj"].T
        return norm(x, weight=model["ln_f.weight"]) @ model["wte.weight"].T

    own = {f"_orig_mod.transformer.{name}": x for name, x in model.items()}
    checkpoint = {"model_args": args, "model": own | {"_orig_mod.lm_head.weight": own[WTE]}}
    converted = dict(checkpoint["model"])
    for name in own:
        if name.endswith(tuple(f"{matrix}.weight" for matrix in names)):
            converted[name] = own[name].T
        if "wte" not in name and "wpe" not in name:
            bias = torch.zeros(converted[name].shape[-1])
            converted[name.replace(".weight", ".bias")] = bias
    torch.save(converted, tmp_path / "pytorch_model.bin")
    sizes = {name: args[name] for name in ("n_layer", "n_head", "n_embd")}
    config = {"model_type": "gpt2", **sizes, "n_positions": 8, "activation_function": "gelu"}
    (tmp_path / "config.json").write_text(json.dumps(config | {"vocab_size": 20}))
    ids = torch.tensor([3, 1, 4, 1, 5])
    close(load(tmp_path).run(ids.numpy()).logits[0], by_hand(ids))
