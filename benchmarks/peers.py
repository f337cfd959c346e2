"""The other engines of the comparison, each with the settings its documentation recommends."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

import numpy as np
from engine_base import Array, Engine, clock


class Torch(Engine):
    """The engines on torch share how they start, step and run forward."""

    model: Any
    torch: Any

    def start(self, ids: Array) -> Any:
        with self.torch.inference_mode():
            out = self.model(self.torch.from_numpy(ids), use_cache=True, logits_to_keep=1)
        return out.logits[:, -1:].argmax(-1), out.past_key_values

    def step(self, state: Any) -> Any:
        token, past = state
        with self.torch.inference_mode():
            out = self.model(token, past_key_values=past, use_cache=True, logits_to_keep=1)
        return out.logits[:, -1:].argmax(-1), out.past_key_values

    def forward(self, ids: Array, taps: bool) -> float:
        """Milliseconds for all logits and, with `taps`, all hidden states."""
        with self.torch.inference_mode():
            return clock(lambda: self.model(self.torch.from_numpy(ids), output_hidden_states=taps))


class Transformers(Torch):
    """transformers with scaled-dot-product attention."""

    modules = ("torch", "transformers.models.gpt2.modeling_gpt2")

    def __init__(self, path: str, threads: int) -> None:
        self.torch = importlib.import_module("torch")
        self.torch.set_num_threads(threads)
        kind = importlib.import_module("transformers").AutoModelForCausalLM
        self.model = kind.from_pretrained(path, attn_implementation="sdpa").eval()

    def logits(self, ids: Array) -> Array:
        with self.torch.inference_mode():
            return np.asarray(self.model(self.torch.from_numpy(ids)).logits[0])


class TransformerLens(Torch):
    """TransformerLens' bridge, with unprocessed weights."""

    modules = ("torch", "transformer_lens.model_bridge")

    def __init__(self, path: str, threads: int) -> None:
        self.torch = importlib.import_module("torch")
        self.torch.set_num_threads(threads)
        bridge = importlib.import_module("transformer_lens.model_bridge").TransformerBridge
        self.model = bridge.boot_transformers(path, device="cpu")

    def start(self, ids: Array) -> Any:
        with self.torch.inference_mode():
            return self.model(self.torch.from_numpy(ids))[:, -1:].argmax(-1)

    def forward(self, ids: Array, taps: bool) -> float:
        tokens = self.torch.from_numpy(ids)
        names = [
            f"blocks.{i}.hook_resid_{at}"
            for i in range(self.model.cfg.n_layers)
            for at in ("pre", "mid", "post")
        ]
        with self.torch.inference_mode():
            if taps:
                return clock(lambda: self.model.run_with_cache(tokens, names_filter=names))
            return clock(lambda: self.model(tokens))

    def lens(self, ids: Array) -> float:
        """Milliseconds for a logit lens over every layer and position, top 5."""
        tools = importlib.import_module("transformer_lens.tools.analysis.logit_lens")
        tokens = self.torch.from_numpy(ids)
        with self.torch.inference_mode():
            return clock(lambda: tools.logit_lens(self.model, tokens, positions=None, top_k=5))


class Optimum(Engine):
    """optimum-onnx on onnxruntime, with its IO binding."""

    modules = ("torch", "onnxruntime", "optimum.onnxruntime")

    def __init__(self, path: str, threads: int) -> None:
        self.torch = importlib.import_module("torch")
        self.torch.set_num_threads(threads)
        options = importlib.import_module("onnxruntime").SessionOptions()
        options.intra_op_num_threads = threads
        kind = importlib.import_module("optimum.onnxruntime").ORTModelForCausalLM
        folder = str(Path(path).parent)
        self.model = kind.from_pretrained(folder, session_options=options, use_io_binding=True)

    def start(self, ids: Array) -> Any:
        tokens = self.torch.from_numpy(ids)
        mask = self.torch.ones_like(tokens)
        places = self.torch.arange(tokens.shape[1])[None].expand_as(tokens)
        out = self.model(tokens, attention_mask=mask, position_ids=places, use_cache=True)
        return out.logits[:, -1:].argmax(-1), out.past_key_values, mask

    def step(self, state: Any) -> Any:
        token, past, mask = state
        mask = self.torch.cat([mask, mask[:, :1]], 1)
        out = self.model(
            token,
            attention_mask=mask,
            position_ids=self.torch.full_like(token, mask.shape[1] - 1),
            past_key_values=past,
            use_cache=True,
        )
        return out.logits[:, -1:].argmax(-1), out.past_key_values, mask


class CTranslate2(Engine):
    """CTranslate2. It offers no single steps: a step is the difference between two lengths."""

    modules = ("ctranslate2",)
    compute_type = "float32"

    def __init__(self, path: str, threads: int) -> None:
        kind = importlib.import_module("ctranslate2").Generator
        self.model = kind(
            str(Path(path).parent), device="cpu", compute_type=self.compute_type,
            intra_threads=threads, inter_threads=1,
        )  # fmt: skip

    def _generate(self, ids: Array, steps: int) -> None:
        self.model.generate_batch(
            [[f"<{i}>" for i in row] for row in ids],
            max_length=steps,
            min_length=steps,
            sampling_topk=1,
            beam_size=1,
            include_prompt_in_result=False,
        )

    def prefill(self, ids: Array) -> float:
        return clock(lambda: self._generate(ids, 1))

    def decode(self, ids: Array, steps: int) -> float:
        short = clock(lambda: self._generate(ids, 1))
        return (clock(lambda: self._generate(ids, 1 + steps)) - short) / steps


class CTranslate2Int8(CTranslate2):
    """CTranslate2 with int8 weights."""

    compute_type = "int8"


class LlamaCpp(Engine):
    """llama.cpp through llama-cpp-python."""

    modules = ("llama_cpp",)

    def __init__(self, path: str, threads: int) -> None:
        self.lib: Any = importlib.import_module("llama_cpp")
        self.settings = {
            "n_ctx": 1024, "n_threads": threads, "n_threads_batch": threads, "n_batch": 512,
            "n_ubatch": 512, "verbose": False,
        }  # fmt: skip
        self.path = path
        self.model = self.lib.Llama(path, **self.settings)

    def start(self, ids: Array) -> Any:
        self.model.reset()
        self.model.eval(ids[0].tolist())
        return self._best()

    def step(self, state: Any) -> Any:
        self.model.eval([state])
        return self._best()

    def _best(self) -> int:
        logits = self.lib.llama_get_logits_ith(self.model.ctx, -1)
        return int(np.ctypeslib.as_array(logits, (self.model.n_vocab(),)).argmax())

    def logits(self, ids: Array) -> Array:
        whole = self.lib.Llama(self.path, logits_all=True, **self.settings)
        whole.eval(ids[0].tolist())
        return np.array(whole.scores[: ids.shape[1]])
