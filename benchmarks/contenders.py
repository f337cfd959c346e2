"""The engines that are compared, and what each comparison measures."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

TORCH = "torch==2.13.0"
PEERS = {  # environment -> the packages in it
    "transformers": [TORCH, "transformers==5.23.0"],
    "transformer_lens": [TORCH, "transformer-lens==4.3.0"],
    "optimum": [TORCH, "optimum-onnx[onnxruntime]==0.1.0"],
    "ctranslate2": [TORCH, "ctranslate2==4.8.5", "transformers==5.23.0"],
    "llama.cpp": ["llama-cpp-python==0.3.36", "gguf==0.19.0", "safetensors"],
}


@dataclass(frozen=True)
class Contender:
    """An engine with a file to run: the worker's name for it, environment, path under --work."""

    engine: str
    env: str
    path: str


OURS, LLAMA, CT2 = "gpt2kit", "llama.cpp", "ctranslate2"
CONTENDERS = {
    "gpt2kit fp32": Contender(OURS, OURS, "fp32/model.onnx"),
    "gpt2kit fp32, hooked": Contender(OURS, OURS, "hooked/model.onnx"),
    "gpt2kit fp32, every tap": Contender(OURS, OURS, "tapped/model.onnx"),
    "gpt2kit int8": Contender(OURS, OURS, "int8/model.onnx"),
    "gpt2kit int4": Contender(OURS, OURS, "int4/model.onnx"),
    "gpt2kit int4-all": Contender(OURS, OURS, "int4-all/model.onnx"),
    "gpt2kit torch": Contender("gpt2kit-torch", OURS, "checkpoint"),
    "transformers": Contender("transformers", "transformers", "checkpoint"),
    "TransformerLens": Contender("transformer_lens", "transformer_lens", "checkpoint"),
    "optimum-onnx": Contender("optimum", "optimum", "optimum/model.onnx"),
    "CTranslate2 fp32": Contender("ctranslate2", CT2, "ctranslate2/model.bin"),
    "CTranslate2 int8": Contender("ctranslate2-int8", CT2, "ctranslate2-int8/model.bin"),
    "llama.cpp f32": Contender(LLAMA, LLAMA, "llama.cpp/f32.gguf"),
    "llama.cpp q8_0": Contender(LLAMA, LLAMA, "llama.cpp/q8_0.gguf"),
    "llama.cpp q4_0": Contender(LLAMA, LLAMA, "llama.cpp/q4_0.gguf"),
}
CARRIED = {"hooked": ("*.resid_*", "*.resid_*"), "tapped": ("*", ())}  # folder -> taps, edits


@dataclass(frozen=True)
class Comparison:
    """One line of the first table.

    ours: our contender. peers: their contenders -> how many times as fast ours should be; None
    where there is no goal. request: what each of them runs, on a prompt of (batch, tokens).
    """

    name: str
    ours: str
    peers: dict[str, float | None]
    request: dict[str, Any]
    tokens: int
    batch: int = 1


def decode(steps: int = 48) -> dict[str, Any]:
    """A request for the time of a decode step."""
    return {"do": "decode", "steps": steps}


COMPARISONS = [
    Comparison(
        "fp32 decode, context 128 to 176", "gpt2kit fp32",
        {"transformers": 2.2, "optimum-onnx": 1.25, "llama.cpp f32": 1.0, "CTranslate2 fp32": None},
        decode(), 128,
    ),
    Comparison(
        "int8 decode, context 128 to 176", "gpt2kit int8",
        {"CTranslate2 int8": 2.2, "llama.cpp q8_0": 1.15}, decode(), 128,
    ),
    Comparison(
        "int4 decode, context 128 to 176", "gpt2kit int4", {"llama.cpp q4_0": 1.15}, decode(), 128
    ),
    Comparison(
        "the same, the head in 4 bits too", "gpt2kit int4-all", {"llama.cpp q4_0": 1.15}, decode(),
        128,
    ),
    Comparison(
        "fp32 prefill 128", "gpt2kit fp32",
        {"transformers": None, "optimum-onnx": None, "llama.cpp f32": None,
         "CTranslate2 fp32": None},
        {"do": "prefill"}, 128,
    ),
    Comparison(
        "fp32 prefill 512", "gpt2kit fp32",
        {"transformers": 2.3, "optimum-onnx": 1.4, "llama.cpp f32": None, "CTranslate2 fp32": None},
        {"do": "prefill"}, 512,
    ),
    Comparison(
        "fp32 decode, batch of 8", "gpt2kit fp32", {"transformers": 2.0}, decode(24), 128, batch=8,
    ),
    Comparison(
        "torch forward, 128 tokens", "gpt2kit torch", {"transformers": 1.0},
        {"do": "forward", "taps": False}, 128,
    ),
    Comparison(
        "torch forward with residual taps, 128 tokens", "gpt2kit torch",
        {"transformers": 0.95, "TransformerLens": None}, {"do": "forward", "taps": True}, 128,
    ),
    Comparison(
        "torch decode, context 128", "gpt2kit torch", {"transformers": 1.1}, decode(24), 128,
    ),
    Comparison(
        "logit lens, all layers, 128 positions (torch)", "gpt2kit torch", {"TransformerLens": 2.0},
        {"do": "lens"}, 128,
    ),
    Comparison(
        "logit lens, all layers, 128 positions (ONNX)", "gpt2kit fp32, hooked",
        {"gpt2kit torch": None, "TransformerLens": None}, {"do": "lens"}, 128,
    ),
    Comparison(
        "all residual taps of 512 tokens", "gpt2kit fp32, hooked", {"TransformerLens": 2.5},
        {"do": "forward", "taps": True}, 512,
    ),
]  # fmt: skip
