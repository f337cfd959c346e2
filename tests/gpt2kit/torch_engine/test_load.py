"""`load`: from a folder, the hub or the package, and everything that can be wrong with files."""

import json
import os
import pickle
import subprocess
import sys
import warnings
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

import gpt2kit
from gpt2kit import TorchRunner, shipped
from gpt2kit.errors import CheckpointError, ConfigError, GPT2KitError, InputError
from tests.conftest import CONFIG, close, random_ids, random_model, write_checkpoint

IDS = random_ids(1, 6)
NAMED = "someone/tiny@012345678901"  # the commit, whatever the revision was called


def load(source, **options):
    return gpt2kit.load(source, device="cpu", **options)


@pytest.fixture
def folder(tmp_path) -> Path:
    write_checkpoint(tmp_path / "model")
    return tmp_path / "model"


@pytest.fixture
def hub_cache(tmp_path, monkeypatch) -> Path:
    """An empty hub cache, and no network."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    return tmp_path / "hub"


def fill_cache(cache: Path, name: str, revision: str = "main") -> Path:
    """Put a checkpoint into a hub cache, as a download would; returns its folder."""
    repo, commit = cache / f"models--{name.replace('/', '--')}", "0123456789" * 4
    (repo / "refs").mkdir(parents=True)
    (repo / "refs" / revision).write_text(commit)
    (repo / "snapshots").mkdir()
    write_checkpoint(repo / "snapshots" / commit)
    return repo / "snapshots" / commit


def edit_weights(folder: Path, change) -> None:
    weights = load_file(folder / "model.safetensors")
    change(weights)
    save_file(weights, folder / "model.safetensors")


# What loads


def test_a_folder_loads_as_path_or_text_and_tells_its_name(folder):
    want = random_model()(torch.as_tensor(IDS)).logits
    for source in (folder, str(folder), os.path.relpath(folder)):
        runner = load(source)
        close(runner.run(IDS).logits, want)
        assert str(runner.source) == "model"
        assert runner.tokenizer is None


def test_nothing_in_the_folder_is_changed(folder):
    before = {file: file.read_bytes() for file in folder.iterdir()}
    runner = load(folder)
    runner.run(IDS, edits=[gpt2kit.Edit.zero("embed")])
    runner.model.wte.weight.data.zero_()
    assert {file: file.read_bytes() for file in folder.iterdir()} == before


@pytest.mark.parametrize("stored", [torch.float16, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("asked", ["float32", "float64", "float16", "bfloat16"])
def test_the_dtype_is_the_one_asked_for_whatever_the_file_holds(tmp_path, stored, asked):
    weights = write_checkpoint(tmp_path)
    save_file({k: x.to(stored) for k, x in weights.items()}, tmp_path / "model.safetensors")
    runner = load(tmp_path, dtype=asked)
    dtype = getattr(torch, asked)
    assert {x.dtype for x in runner.model.state_dict().values()} == {dtype}
    assert torch.equal(runner.model.wpe.weight, weights["wpe.weight"].to(stored).to(dtype))


def test_a_copy_of_the_tied_matrix_is_accepted_and_dropped(folder):
    edit_weights(folder, lambda w: w.update({"lm_head.weight": w["wte.weight"].clone()}))
    runner = load(folder)
    assert runner.model.unembedding is runner.model.wte.weight


def test_an_untied_matrix_is_loaded(tmp_path):
    config = replace(CONFIG, tie_word_embeddings=False)
    weights = write_checkpoint(tmp_path, config)
    assert torch.equal(load(tmp_path).model.unembedding, weights["lm_head.weight"])


def test_weights_need_no_gradient_and_the_model_is_in_evaluation_mode(folder):
    model = load(folder).model
    assert not model.training
    assert not any(p.requires_grad for p in model.parameters())


def test_safetensors_are_preferred_to_a_pickle(folder):
    (folder / "pytorch_model.bin").write_bytes(b"never read")
    load(folder)


def test_the_bundled_model_loads_and_says_its_name():
    runner = load("bundled")
    assert str(runner.source) == "bundled"
    assert runner.tokenizer is not None
    assert runner.tokenizer.vocab_size == runner.config.vocab_size
    ids = runner.tokenizer.encode("It was the best of times")
    assert np.isfinite(runner.run(ids).logits).all()


def test_a_cached_model_loads_without_the_hub(hub_cache):
    fill_cache(hub_cache, "someone/tiny")
    runner = load("someone/tiny")
    close(runner.run(IDS).logits, random_model()(torch.as_tensor(IDS)).logits)
    assert str(runner.source) == NAMED


def test_a_cached_revision_loads_and_is_named(hub_cache):
    fill_cache(hub_cache, "someone/tiny", "v1")
    assert str(load("someone/tiny", revision="v1").source) == NAMED
    refused("someone/tiny: not a local folder, not in the cache", "someone/tiny")


def test_a_cached_pickle_loads(hub_cache):
    snapshot = fill_cache(hub_cache, "someone/tiny")
    torch.save(load_file(snapshot / "model.safetensors"), snapshot / "pytorch_model.bin")
    (snapshot / "model.safetensors").unlink()
    load("someone/tiny")


def test_a_folder_comes_before_the_hub(hub_cache, folder, monkeypatch):
    monkeypatch.chdir(folder.parent)
    folder.rename("gpt2")
    load("gpt2")


# auto


def test_auto_is_gpt2_where_it_is_cached(hub_cache, capsys):
    fill_cache(hub_cache, "gpt2")
    assert str(load("auto").source) == "gpt2@012345678901"
    assert capsys.readouterr().err == ""


def test_auto_falls_back_to_the_bundled_model_and_says_so(hub_cache, folder, monkeypatch, capsys):
    monkeypatch.setattr(shipped, "BUNDLED", folder)
    assert str(load("auto").source) == "bundled"
    out, err = capsys.readouterr()
    assert out == ""
    assert "using the small bundled model" in err
    assert "--model gpt2" in err
    assert err.count("\n") == 1


def test_auto_with_a_revision_does_not_fall_back(hub_cache):
    with pytest.raises(CheckpointError, match="gpt2: not a local folder"):
        load("auto", revision="v1")


def test_a_model_that_was_named_never_falls_back(hub_cache, capsys):
    with pytest.raises(CheckpointError):
        load("gpt2")
    assert capsys.readouterr().err == ""


# What does not load


def refused(words: str, source, kind=CheckpointError, **options) -> None:
    with pytest.raises(kind, match=words) as caught:
        load(source, **options)
    assert "\n" not in str(caught.value)
    assert isinstance(caught.value, GPT2KitError)
    assert caught.value.exit_code == 2


def drop(name):
    return lambda folder: (folder / name).unlink()


def write(name, content):
    return lambda folder: (folder / name).write_bytes(content)


def cut(folder):
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])


def weights(change):
    return lambda folder: edit_weights(folder, change)


def config(**change):
    def damage(folder):
        raw = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps(raw | change))

    return damage


def index(content):
    def damage(folder):
        (folder / "model.safetensors").unlink()
        (folder / "model.safetensors.index.json").write_text(content)

    return damage


NAN, LN = torch.full((24,), torch.nan), "h.1.ln_1.weight"
BROKEN = {
    "no config": (drop("config.json"), "no config.json; is it a Hugging Face checkpoint folder"),
    "no weights": (drop("model.safetensors"), "no weights; expected one of model.safetensors"),
    "truncated": (cut, "model.safetensors: not a whole safetensors file.*download it again"),
    "empty": (write("model.safetensors", b""), "not a whole safetensors file"),
    "garbage": (write("model.safetensors", b"\x00" * 99), "not a whole safetensors file"),
    "web page": (write("model.safetensors", b"<html>\n<body>404"), "not a whole safetensors"),
    "missing tensor": (
        weights(lambda w: w.pop("h.2.mlp.c_fc.weight")),
        r"h.2.mlp.c_fc.weight \(24, 96\) is missing from the weights$",
    ),
    "missing tensors": (
        weights(lambda w: [w.pop(name) for name in list(w) if name.startswith("h.2")]),
        r"h.2.ln_1.weight \(24,\) is missing from the weights \(and 11 more\)",
    ),
    "extra tensor": (
        weights(lambda w: w.update({"h.3.ln_1.bias": torch.zeros(24)})),
        r"h.3.ln_1.bias \(24,\) is no part of this GPT-2$",
    ),
    "another head": (
        weights(lambda w: w.update({"value_head.weight": torch.zeros(2, 24)})),
        r"value_head.weight \(2, 24\) is no part of this GPT-2",
    ),
    "misshapen": (
        weights(lambda w: w.update({LN: torch.zeros(25)})),
        r"h.1.ln_1.weight has shape \(25,\), config.json asks for \(24,\)",
    ),
    "transposed": (
        weights(lambda w: w.update({"h.0.mlp.c_fc.weight": torch.zeros(96, 24)})),
        r"h.0.mlp.c_fc.weight has shape \(96, 24\), config.json asks for \(24, 96\)",
    ),
    "another size": (config(vocab_size=99), r"wte.weight has shape \(261, 24\).*\(99, 24\)"),
    "nan": (weights(lambda w: w.update({LN: NAN})), "h.1.ln_1.weight holds NaN or infinite"),
    "infinite": (weights(lambda w: w.update({LN: 1 / (0 * NAN.nan_to_num())})), "infinite values"),
    "integers": (
        weights(lambda w: w.update({LN: torch.ones(24, dtype=torch.int64)})),
        "h.1.ln_1.weight holds torch.int64, not floating point",
    ),
    "two unembeddings": (
        weights(lambda w: w.update({"lm_head.weight": w["wte.weight"] + 1})),
        "lm_head.weight differs from wte.weight, but config.json ties them",
    ),
    "no unembedding": (config(tie_word_embeddings=False), r"lm_head.weight \(261, 24\) is missing"),
    "missing shard": (
        index('{"weight_map": {"wte.weight": "model-1-of-2.safetensors"}}'),
        "index.json: shard model-1-of-2.safetensors is missing",
    ),
    "shard elsewhere": (
        index('{"weight_map": {"wte.weight": "../model.safetensors"}}'),
        "its shards must be names of files beside it",
    ),
    "shard number": (index('{"weight_map": {"wte.weight": 3}}'), "must be names of files"),
    "eight bits": (
        weights(lambda w: w.update({LN: torch.ones(24).to(torch.float8_e4m3fn)})),
        "holds torch.float8_e4m3fn, not floating point",
    ),
    "no shards": (index('{"weight_map": {}}'), "index.json: .*missing"),
    "broken index": (index("{"), "not a readable index of shards"),
    "strange index": (index('{"weight_map": 3}'), "not a readable index of shards"),
    "listed index": (index("[]"), "not a readable index of shards"),
    "broken tokenizer": (write("tokenizer.json", b"{"), "tokenizer files cannot be read"),
}  # fmt: skip
MISREAD = {
    "architecture": (config(model_type="gptj"), "model_type is 'gptj', gpt2kit reads only 'gpt2'"),
    "unknown key": (config(rotary_dim=64), "rotary_dim = 64 is unknown to gpt2kit"),
    "broken config": (write("config.json", b"{"), "config.json: not a readable config.json"),
    "binary config": (write("config.json", b"\xff\xff"), "not a readable config.json"),
}


@pytest.mark.parametrize("damage", BROKEN)
def test_a_broken_checkpoint_is_refused_in_one_line(folder, damage):
    change, words = BROKEN[damage]
    change(folder)
    refused(words, folder)


@pytest.mark.parametrize("damage", MISREAD)
def test_a_config_that_is_not_ours_is_refused_in_one_line(folder, damage):
    change, words = MISREAD[damage]
    change(folder)
    refused(words, folder, ConfigError)


class Code:
    """Unpickling this runs a command."""

    def __init__(self, file: Path) -> None:
        self.file = file

    def __reduce__(self):
        return Path.touch, (self.file,)


@pytest.mark.parametrize("new", [True, False], ids=["zip", "old"])
def test_code_in_a_pickle_does_not_run(folder, new):
    proof = folder / "it ran"
    content = load_file(folder / "model.safetensors") | {"h.0.extra": Code(proof)}
    file = folder / "pytorch_model.bin"
    torch.save(content, file, _use_new_zipfile_serialization=new)
    torch.load(file, weights_only=False)
    assert proof.exists()  # the trap works
    proof.unlink()
    (folder / "model.safetensors").unlink()
    refused("pytorch_model.bin: refused.*holds code or objects", folder)
    assert not proof.exists()


@pytest.mark.parametrize(
    "content", [b"", b"hello", b"<html>", b"PK\x03\x04" + b"\0" * 99, b"\x80\x02}q\x00."], ids=repr
)
def test_a_damaged_pickle_is_refused_in_one_line(folder, content):
    (folder / "model.safetensors").unlink()
    (folder / "pytorch_model.bin").write_bytes(content)
    refused("pytorch_model.bin", folder)


@pytest.mark.parametrize("new", [True, False], ids=["zip", "old"])
@pytest.mark.parametrize("part", [0.3, 0.9, 0.999])
def test_a_truncated_pickle_is_refused_in_one_line(folder, new, part):
    file = folder / "pytorch_model.bin"
    torch.save(load_file(folder / "model.safetensors"), file, _use_new_zipfile_serialization=new)
    file.write_bytes(file.read_bytes()[: int(part * file.stat().st_size)])
    (folder / "model.safetensors").unlink()
    refused("pytorch_model.bin", folder)


def test_a_pickle_that_is_no_mapping_is_refused(folder):
    (folder / "model.safetensors").unlink()
    torch.save([torch.zeros(3)], folder / "pytorch_model.bin")
    refused("not a mapping from names to tensors", folder)
    torch.save({"wte.weight": 3}, folder / "pytorch_model.bin")
    refused("not a mapping from names to tensors", folder)


def test_a_folder_that_is_not_there_is_refused(tmp_path):
    refused("no such folder", tmp_path / "nowhere")
    refused("no such folder", "./nowhere")


def test_a_folder_has_no_revision(folder):
    refused("revision 'v1' given, but only hub ids have one", folder, revision="v1")
    refused("only hub ids have one", "bundled", revision="v1")


@pytest.mark.parametrize("name", ["gpt2", "no-such/model"])
def test_an_id_that_is_not_cached_needs_the_hub(hub_cache, name):
    refused(f"{name}: not a local folder, not in the cache, and the hub cannot be reached", name)


@pytest.mark.parametrize("name", ["a/b/c", "no such model", "--flag"])
def test_an_impossible_id_is_refused(hub_cache, name):
    refused(f"{name}: cannot be downloaded: Repo id", name)


def test_a_half_finished_download_is_not_taken_for_a_model(hub_cache):
    snapshot = fill_cache(hub_cache, "someone/tiny")
    (snapshot / "model.safetensors").unlink()
    refused("someone/tiny: the hub .* has no GPT-2 weights", "someone/tiny")
    index = {"weight_map": {"wte.weight": "model-1-of-2.safetensors"}}
    (snapshot / "model.safetensors.index.json").write_text(json.dumps(index))
    refused("shard model-1-of-2.safetensors is missing", "someone/tiny")


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"dtype": "int8"}, "dtype = 'int8' is not one of float32"),
        ({"device": "abacus"}, "device 'abacus' is not one that torch knows"),
    ],
)
def test_an_unknown_dtype_or_device_is_told_before_anything_is_read(options, words):
    with pytest.raises(InputError, match=words):
        gpt2kit.load("nowhere/at-all", **options)


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has CUDA")
def test_cuda_where_there_is_none_is_told(folder):
    with pytest.raises(InputError, match="torch sees no CUDA here"):
        gpt2kit.load(folder, device="cuda")


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="peak memory is read there")
def test_loading_124m_weights_takes_the_memory_of_one_copy(tmp_path):
    size = sum(x.nbytes for x in write_zeros(tmp_path, gpt2kit.GPT2Config()).values())
    code = """
import pathlib, re, sys, gpt2kit
status = pathlib.Path("/proc/self/status")
peak = lambda: int(re.search(r"VmHWM:\\s+(\\d+) kB", status.read_text())[1]) * 1024
gpt2kit.load  # imports what loading needs
before = peak()
runner = gpt2kit.load(sys.argv[1], device="cpu")
print(peak() - before)
"""
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, check=True
    )
    assert 0.9 * size < int(done.stdout) < 1.2 * size


def write_zeros(folder: Path, config) -> dict[str, torch.Tensor]:
    with torch.device("meta"):
        weights = gpt2kit.GPT2(config).state_dict()
    weights = {name: torch.zeros(x.shape) for name, x in weights.items()}
    save_file(weights, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps(config.to_hf()))
    return weights


def test_an_empty_name_is_no_folder():
    with pytest.raises(CheckpointError, match="name is empty"):
        load("")


def test_the_tied_matrix_may_be_saved_under_either_name(tmp_path):
    saved = write_checkpoint(tmp_path / "a")
    saved["lm_head.weight"] = saved.pop("wte.weight")
    save_file(saved, tmp_path / "a" / "model.safetensors")
    ids = random_ids(1, 5)
    close(load(tmp_path / "a").run(ids).logits, TorchRunner(random_model()).run(ids).logits)


def test_a_tied_copy_may_be_of_another_dtype(tmp_path):
    saved = write_checkpoint(tmp_path / "a")
    saved["wte.weight"] = saved["wte.weight"].half()
    saved["lm_head.weight"] = saved["wte.weight"].float()
    save_file(saved, tmp_path / "a" / "model.safetensors")
    assert load(tmp_path / "a").run([1, 2]).logits.shape == (1, 2, CONFIG.vocab_size)


def test_a_bare_pickle_with_code_is_refused_in_silence(folder):
    proof = folder / "it ran"
    (folder / "model.safetensors").unlink()
    (folder / "pytorch_model.bin").write_bytes(pickle.dumps(Code(proof), protocol=4))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        refused("pytorch_model.bin: refused.*holds code or objects", folder)
    assert not proof.exists()


def test_a_home_that_does_not_exist_is_no_such_folder():
    refused("~nobody-by-this-name: no such folder", "~nobody-by-this-name")
