"""A small random model and its tokenizer, and the `runner` fixture over both engines."""

import json
import os
from collections import Counter
from dataclasses import replace
from functools import cache
from pathlib import Path

os.environ.setdefault("SYMPY_CACHE_SIZE", "100000")  # tracing many edits overflows its 1000

import numpy as np
import pytest
import tokenizers
import torch
from tokenizers import decoders, models, pre_tokenizers

from gpt2kit import GPT2, GPT2Config, Tokenizer, TorchRunner, load
from gpt2kit.runner import Source
from gpt2kit.taps import tap_axes

torch.set_num_threads(1)  # threads cost more than they bring on matrices this small

ENGINES = ["torch", "onnx", "fused"]

MERGES = [("h", "e"), ("he", "Ġ"), ("t", "he"), ("the", "Ġ")]
CONFIG = GPT2Config(
    vocab_size=256 + len(MERGES) + 1,
    n_positions=40,
    n_embd=24,
    n_layer=3,
    n_head=3,
    bos_token_id=256 + len(MERGES),
    eos_token_id=256 + len(MERGES),
)
GPT2_TOKENIZER = Path(__file__).parents[1].parent / "shared" / "gpt2-tokenizer"


def random_model(config: GPT2Config = CONFIG, seed: int = 0, dtype=torch.float32) -> GPT2:
    """Weights large enough that attention is far from uniform."""
    generator = torch.Generator().manual_seed(seed)
    model = GPT2(config)
    for name, weight in model.named_parameters():
        norm = "ln_" in name and name.endswith("weight")
        weight.data = torch.randn(weight.shape, generator=generator) * 0.3 + float(norm)
    return model.to(dtype).eval().requires_grad_(False)


def byte_tokenizer() -> Tokenizer:
    """Every byte is a token; then a few merges, and <|endoftext|>."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    words = [*alphabet, *("".join(pair) for pair in MERGES)]
    vocab = {word: i for i, word in enumerate(words)}
    inner = tokenizers.Tokenizer(models.BPE(vocab=vocab, merges=MERGES))
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = decoders.ByteLevel()
    inner.add_special_tokens(["<|endoftext|>"])
    return Tokenizer(inner)


def random_ids(*shape: int, seed: int = 0, vocab: int = 250) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, vocab, shape)


def close(got, want, tolerance: float = 1e-4) -> None:
    """Equal within `tolerance`, shapes included."""
    got, want = np.asarray(got), np.asarray(want)
    assert got.shape == want.shape
    if not np.allclose(got, want, rtol=tolerance, atol=tolerance):  # the fast check first
        np.testing.assert_allclose(got, want, rtol=tolerance, atol=tolerance)


def carried(runner) -> tuple[str, ...]:
    """Every tap that this engine gives."""
    return getattr(runner, "taps", tuple(tap_axes(CONFIG.n_layer)))


def write_checkpoint(folder: Path, config: GPT2Config = CONFIG, **change) -> dict:
    """Write a checkpoint folder; returns its weights. `change` goes into config.json."""
    from safetensors.torch import save_file

    weights = random_model(config).state_dict()
    folder.mkdir(exist_ok=True)
    save_file(weights, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps(config.to_hf() | change))
    return weights


def no_gpu() -> str:
    """Why tests of CUDA cannot run here, or "" where they can."""
    from exporters.engine.devices import cuda_problems

    if not torch.cuda.is_available():
        return "torch sees no GPU"
    return "; ".join(cuda_problems())


def pytest_collection_modifyitems(items) -> None:
    of_cuda = [item for item in items if item.get_closest_marker("cuda")]
    if of_cuda and (reason := no_gpu()):
        for item in of_cuda:
            item.add_marker(pytest.mark.skip(reason=f"NOT TESTED: {reason}"))


def pytest_terminal_summary(terminalreporter) -> None:
    """Say which tests could not run here, and why."""
    mark = "NOT TESTED: "
    skipped = (str(report.longrepr[2]) for report in terminalreporter.stats.get("skipped", []))
    reasons = Counter(text.split(mark, 1)[1] for text in skipped if mark in text)
    for reason, count in reasons.items():
        terminalreporter.write_line(f"{count} tests NOT RUN: {reason}", yellow=True)


@pytest.fixture(scope="session")
def torch_runner() -> TorchRunner:
    return TorchRunner(random_model(), byte_tokenizer(), Source("random"))


@pytest.fixture(scope="session")
def double() -> TorchRunner:
    """A model in float64, for comparisons that leave no doubt."""
    config = replace(CONFIG, scale_attn_by_inverse_layer_idx=True)
    return TorchRunner(random_model(config, seed=1, dtype=torch.float64), byte_tokenizer())


# All taps that tests read of the quantised bundled model, so that one file of each kind is enough.
QUANTISED_TAPS = ("*embed", "ln_f_scale", "*.resid_*", "*.z", "*.attn_out", "*.mlp_*")


@pytest.fixture(scope="session")
def bundled() -> TorchRunner:
    return load("bundled", device="cpu")


def export_once(runner: TorchRunner, tmp_path_factory):
    """A function (profile, taps, edits, quantize) -> exported file of `runner`, each made once."""
    from exporters import export_onnx

    @cache
    def make(**options) -> Path:
        path = tmp_path_factory.mktemp("onnx") / f"{runner.source}.onnx"
        export_onnx(runner, path, **options)
        return path

    def file(profile="portable", taps=(), edits=(), quantize=None, dtype="float32") -> Path:
        return make(profile=profile, taps=taps, edits=edits, quantize=quantize, dtype=dtype)

    return file


@pytest.fixture(scope="session")
def file_of(torch_runner, tmp_path_factory):
    """Files of `torch_runner` that no test changes."""
    return export_once(torch_runner, tmp_path_factory)


@pytest.fixture(scope="session")
def bundled_file(bundled, tmp_path_factory):
    """Files of the bundled model that no test changes."""
    return export_once(bundled, tmp_path_factory)


@pytest.fixture(scope="session")
def onnx_runner(file_of):
    from exporters import open_onnx

    return open_onnx(file_of(taps="*", edits="*"), device="cpu")


@pytest.fixture(scope="session")
def fused_runner(file_of):
    from exporters import open_onnx

    return open_onnx(file_of("fused", taps="*", edits="*"), device="cpu")


@pytest.fixture(scope="session", params=ENGINES)
def runner(request):
    return request.getfixturevalue(f"{request.param}_runner")
