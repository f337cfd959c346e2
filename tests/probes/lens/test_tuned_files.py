"""Files of tuned lenses: saved ones, published ones, and damaged ones."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch
from safetensors import safe_open
from safetensors.numpy import save_file

from exporters import export_onnx, open_onnx
from gpt2kit import TorchRunner
from gpt2kit.errors import CheckpointError, InputError
from gpt2kit.runner import Source
from probes.lens.tuned_lens import TunedLens, tuned_lens
from probes.lens.tuned_training import train_tuned_lens
from tests.conftest import CONFIG, byte_tokenizer, close, random_ids, random_model
from tests.probes.lens.support import random_translators

PROMPT = "the cat, the hat"


@pytest.fixture(scope="module")
def lens(torch_runner) -> TunedLens:
    return random_translators(torch_runner)


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


def test_a_lens_serves_the_same_weights_in_float64_and_one_of_float64_those_in_float32(
    torch_runner,
):
    double = TorchRunner(random_model(dtype=torch.float64), byte_tokenizer(), Source("double"))
    own = random_translators(torch_runner)
    lens = replace(own, sha256=TunedLens.identity(torch_runner).sha256)
    close(tuned_lens(double, PROMPT, lens).kl, tuned_lens(torch_runner, PROMPT, lens).kl)
    for other in (torch_runner, double):
        tuned_lens(other, PROMPT, TunedLens.identity(double))


def test_a_lens_serves_an_exported_file_in_half_precision(tmp_path, torch_runner):
    lens = TunedLens.identity(torch_runner)
    export_onnx(torch_runner, tmp_path / "half.onnx", taps="*.resid_*", dtype="float16")
    half = open_onnx(tmp_path / "half.onnx", device="cpu")
    assert (half.dtype, tuned_lens(half, PROMPT, lens).dtype) == ("float16", "float16")


def test_a_lens_of_other_sizes_is_refused(bundled, lens):
    with pytest.raises(InputError, match="does not fit bundled, which has 8 layers of width 192"):
        tuned_lens(bundled, PROMPT, replace(lens, sha256=()))


def test_other_files_are_refused(tmp_path):
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
    brain = {name: torch.zeros(3, dtype=torch.bfloat16) for name in ("weight", "bias")}
    safetensors.torch.save_file(brain, tmp_path / "brain")
    with pytest.raises(CheckpointError, match="brain: not a tuned lens that"):
        TunedLens.load(tmp_path / "brain")


def test_a_saved_lens_that_lacks_a_part_is_refused(tmp_path, lens):
    lens.save(tmp_path / "lens")
    with safe_open(tmp_path / "lens", framework="numpy") as file:
        metadata = file.metadata()
        tensors = {name: file.get_tensor(name) for name in ("weight", "bias")}
    for missing in metadata:
        left = {key: value for key, value in metadata.items() if key != missing}
        save_file(tensors, tmp_path / "bare", left)
        with pytest.raises(CheckpointError, match="bare: not a tuned lens that gpt2kit saved"):
            TunedLens.load(tmp_path / "bare")
    for name, cut in (("weight", np.s_[1:]), ("weight", np.s_[:, 1:]), ("bias", np.s_[0])):
        save_file(tensors | {name: tensors[name][cut].copy()}, tmp_path / "cut", metadata)
        with pytest.raises(CheckpointError, match=r"cut: weight \(.*\) must be \(layer, d_model"):
            TunedLens.load(tmp_path / "cut")


def test_a_lens_in_half_precision_takes_half_the_space_and_is_read_in_float32(tmp_path, lens):
    half = replace(lens, weight=lens.weight.astype(np.float16), bias=lens.bias.astype(np.float16))
    sizes = []
    for each in (lens, half):
        each.save(tmp_path / "lens")
        sizes.append((tmp_path / "lens").stat().st_size)
    assert sizes[1] < 0.6 * sizes[0]
    back = TunedLens.load(tmp_path / "lens")
    assert (back.weight.dtype, back.bias.dtype) == ("float32", "float32")
    np.testing.assert_array_equal(back.weight, half.weight)
    np.testing.assert_array_equal(back.bias, half.bias)


def published(folder: Path, lens: TunedLens, bias: bool = True, **change) -> Path:
    """A lens as the authors of the paper publish theirs: a ModuleList of Linear layers."""
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


def test_a_published_lens_whose_parts_do_not_fit_is_refused(tmp_path, lens):
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
    """A pickle that holds code, which must not run."""

    def __reduce__(self):
        return print, ("ran",)
