"""The peers' own files, made from one checkpoint in the environment of each peer."""

from __future__ import annotations

import importlib
import json
from pathlib import Path
from typing import Any

import numpy as np


def convert_optimum(checkpoint: Path, out: Path) -> None:
    """Write the ONNX file with a KV cache that optimum makes."""
    kind = importlib.import_module("optimum.onnxruntime").ORTModelForCausalLM
    kind.from_pretrained(checkpoint, export=True, use_cache=True).save_pretrained(out)


def convert_ctranslate2(checkpoint: Path, out: Path, quantization: str | None = None) -> None:
    """Write CTranslate2's own format. Tokens are named <id>, because prompts are ids."""
    size = json.loads((checkpoint / "config.json").read_text())["vocab_size"]
    converters = importlib.import_module("ctranslate2.converters.transformers")
    converters.GPT2Loader.get_vocabulary = lambda *_: [f"<{i}>" for i in range(size)]
    converter = converters.TransformersConverter(str(checkpoint))
    converter.convert(str(out), quantization=quantization, force=True)


def convert_llama(checkpoint: Path, out: Path) -> None:
    """Write a float32 GGUF, and quantise it to q8_0 and q4_0."""
    llama: Any = importlib.import_module("llama_cpp")
    plain = out / "f32.gguf"
    write_gguf(checkpoint, plain)
    for kind in ("q8_0", "q4_0"):
        params = llama.llama_model_quantize_default_params()
        params.ftype = getattr(llama, f"LLAMA_FTYPE_MOSTLY_{kind.upper()}")
        target = str(out / f"{kind}.gguf").encode()
        failed = llama.llama_model_quantize(str(plain).encode(), target, params)
        if failed:
            raise SystemExit(f"llama.cpp could not quantise to {kind}")


def write_gguf(checkpoint: Path, path: Path) -> None:
    """Write the checkpoint as a float32 GGUF. The tokens' texts do not matter here."""
    gguf: Any = importlib.import_module("gguf")
    load_file = importlib.import_module("safetensors.numpy").load_file
    config = json.loads((checkpoint / "config.json").read_text())
    writer = gguf.GGUFWriter(path, "gpt2")
    describe_model(writer, gguf, config)
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.GPT2, config["n_layer"])
    for name, array in load_file(checkpoint / "model.safetensors").items():
        wide = array.astype(np.float32)
        if name.endswith(("c_attn.weight", "c_proj.weight", "c_fc.weight")):
            wide = np.ascontiguousarray(wide.T)
        base = name if name.startswith("transformer.") else f"transformer.{name}"
        writer.add_tensor(names.get_name(base, try_suffixes=(".weight", ".bias")), wide)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def describe_model(writer: Any, gguf: Any, config: dict[str, Any]) -> None:
    """Add the shape of the model and a vocabulary of <id> tokens."""
    writer.add_block_count(config["n_layer"])
    writer.add_context_length(config["n_positions"])
    writer.add_embedding_length(config["n_embd"])
    writer.add_feed_forward_length(config.get("n_inner") or 4 * config["n_embd"])
    writer.add_head_count(config["n_head"])
    writer.add_layer_norm_eps(config["layer_norm_epsilon"])
    writer.add_file_type(gguf.LlamaFileType.ALL_F32)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list([f"<{i}>" for i in range(config["vocab_size"])])
    writer.add_token_types([gguf.TokenType.NORMAL] * config["vocab_size"])
    writer.add_token_merges(["< 0"])


CONVERT = {
    "optimum": convert_optimum,
    "ctranslate2": convert_ctranslate2,
    "ctranslate2-int8": lambda c, o: convert_ctranslate2(c, o, "int8"),
    "llama.cpp": convert_llama,
}
