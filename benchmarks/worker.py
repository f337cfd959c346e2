"""One engine in one process, told what to do by `compare.py`, a line of JSON each way.

    python worker.py ENGINE PATH THREADS           # serve requests on standard input
    python worker.py convert ENGINE CHECKPOINT OUT # make the engine's own file from the checkpoint

Runs in the environment of the engine, so it imports nothing of gpt2kit but for our own engines.
Every engine gets the settings that its documentation recommends for speed on a CPU.
"""

from __future__ import annotations

import importlib
import json
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]


def clock(run: Callable[[], Any]) -> float:
    """Milliseconds that one call takes."""
    start = time.perf_counter()
    run()
    return 1e3 * (time.perf_counter() - start)


class Engine:
    """What is asked of every engine. Prompts are ids (batch, pos); all decoding is greedy."""

    modules: tuple[str, ...]  # imported before loading is timed

    def __init__(self, path: str, threads: int) -> None:
        raise NotImplementedError

    def start(self, ids: Array) -> Any:
        """Run prompts into a new cache; returns the next tokens (batch,) and what to go on with."""
        raise NotImplementedError

    def step(self, state: Any) -> Any:
        """One more token a row."""
        raise NotImplementedError

    def logits(self, ids: Array) -> Array:
        """Logits (pos, vocab) of one row."""
        raise NotImplementedError

    def prefill(self, ids: Array) -> float:
        """Milliseconds from a prompt to its last logits, with a cache to go on from."""
        return clock(lambda: self.start(ids))

    def decode(self, ids: Array, steps: int) -> float:
        """Median milliseconds a step after this context."""
        state, times = self.start(ids), []
        for _ in range(steps):
            start = time.perf_counter()
            state = self.step(state)
            times.append(1e3 * (time.perf_counter() - start))
        return statistics.median(times)


class Ours(Engine):
    """gpt2kit on onnxruntime."""

    modules: tuple[str, ...] = ("exporters.engine.runner",)

    def __init__(self, path: str, threads: int) -> None:
        engine = importlib.import_module("exporters.engine.runner")
        self.runner: Any = engine.open_onnx(path, device="cpu", threads=threads)

    def start(self, ids: Array) -> Any:
        cache = self.runner.new_cache(len(ids))
        return self.runner.run(ids, cache=cache, last_only=True, top_k=1)

    def step(self, state: Any) -> Any:
        return self.runner.run(state.top_ids[:, -1], cache=state.cache, last_only=True, top_k=1)

    def logits(self, ids: Array) -> Array:
        return np.asarray(self.runner.run(ids).logits[0])

    def forward(self, ids: Array, taps: bool) -> float:
        """Milliseconds for all logits, and all residual taps if asked."""
        names = ["resid_pre", "resid_mid", "resid_post"] if taps else []
        return clock(lambda: self.runner.run(ids, taps=[f"blocks.*.{name}" for name in names]))

    def lens(self, ids: Array) -> float:
        """Milliseconds for a logit lens over every layer and position, top 5."""
        probes = importlib.import_module("probes")
        return clock(lambda: probes.logit_lens(self.runner, ids[0], top_k=5))

    def generate(self, ids: Array, steps: int, how: str) -> float:
        """Median milliseconds of a generated token: how is "plain", "edited" (one steering edit) or
        "lens" (`generation_lens`: each token is read in every layer)."""
        generate = importlib.import_module("gpt2kit.runner").generate
        prompt, ticks = self.runner.tokenizer.decode(ids[0].tolist()), list[float]()

        def tick(*_: Any) -> None:
            ticks.append(1e3 * time.perf_counter())

        options: dict[str, Any] = {"max_new_tokens": steps + 1, "greedy": True}
        if how == "lens":
            probes = importlib.import_module("probes")
            probes.generation_lens(self.runner, prompt, on_step=tick, **options)
        elif how == "edited":
            edit = importlib.import_module("gpt2kit.edits").Edit
            vector = np.random.default_rng(0).standard_normal(self.runner.config.n_embd)
            steer = edit.steer("blocks.6.resid_post", vector, 4.0)
            generate(self.runner, prompt, edits=[steer], watch=tick, **options)
        else:
            generate(self.runner, prompt, watch=tick, **options)
        if len(ticks) != steps + 1:
            raise SystemExit(f"generation ended after {len(ticks)} tokens of {steps + 1}")
        return statistics.median(np.diff(ticks))


class OursOnTorch(Ours):
    """gpt2kit on torch."""

    modules = ("gpt2kit.torch_engine.load",)

    def __init__(self, path: str, threads: int) -> None:
        importlib.import_module("torch").set_num_threads(threads)
        self.runner = importlib.import_module("gpt2kit.torch_engine.load").load(path, device="cpu")

    def sweep(self, ids: Array, batched: bool) -> float:
        """Milliseconds to patch every head's z from the first prompt into the second: in one sweep,
        or by one run a head."""
        probes = importlib.import_module("probes")
        edits = importlib.import_module("gpt2kit.edits")
        clean, corrupt = ids
        if batched:
            metric = probes.Metric.logit_diff(5, 7)
            return clock(
                lambda: probes.activation_patching(
                    self.runner, clean, corrupt, metric=metric, over="z"
                )
            )

        def one_by_one() -> None:
            taken = self.runner.run(clean, taps="blocks.*.z").taps
            for tap, value in taken.items():
                for head in range(value.shape[2]):
                    edit = edits.Edit.replace(tap, value[:, :, head], head=head)
                    self.runner.run(corrupt, edits=[edit], last_only=True)

        return clock(one_by_one)


class Torch(Engine):
    """What other engines on torch share."""

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
        """Milliseconds for all logits, and all hidden states if asked."""
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
    """TransformerLens' bridge, raw weights."""

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
    """CTranslate2; a step is the difference between two lengths, since it has no single steps."""

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


ENGINES = {
    "gpt2kit": Ours,
    "gpt2kit-torch": OursOnTorch,
    "transformers": Transformers,
    "transformer_lens": TransformerLens,
    "optimum": Optimum,
    "ctranslate2": CTranslate2,
    "ctranslate2-int8": CTranslate2Int8,
    "llama.cpp": LlamaCpp,
}


# ------------------------------------------------------------------------------- conversions


def convert_optimum(checkpoint: Path, out: Path) -> None:
    """An ONNX file with a KV cache, as optimum makes it."""
    kind = importlib.import_module("optimum.onnxruntime").ORTModelForCausalLM
    kind.from_pretrained(checkpoint, export=True, use_cache=True).save_pretrained(out)


def convert_ctranslate2(checkpoint: Path, out: Path, quantization: str | None = None) -> None:
    """CTranslate2's own format. Tokens are named <id>, since prompts are given as ids."""
    size = json.loads((checkpoint / "config.json").read_text())["vocab_size"]
    converters = importlib.import_module("ctranslate2.converters.transformers")
    converters.GPT2Loader.get_vocabulary = lambda *_: [f"<{i}>" for i in range(size)]
    converter = converters.TransformersConverter(str(checkpoint))
    converter.convert(str(out), quantization=quantization, force=True)


def convert_llama(checkpoint: Path, out: Path) -> None:
    """A float32 GGUF beside its q8_0 and q4_0. The tokens' texts do not matter here."""
    gguf: Any = importlib.import_module("gguf")
    llama: Any = importlib.import_module("llama_cpp")
    weights = importlib.import_module("safetensors.numpy").load_file(
        checkpoint / "model.safetensors"
    )
    config = json.loads((checkpoint / "config.json").read_text())
    layers = config["n_layer"]
    plain = out / "f32.gguf"
    writer = gguf.GGUFWriter(plain, "gpt2")
    writer.add_block_count(layers)
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
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.GPT2, layers)
    for name, array in weights.items():
        wide = array.astype(np.float32)
        if name.endswith(("c_attn.weight", "c_proj.weight", "c_fc.weight")):
            wide = np.ascontiguousarray(wide.T)
        base = name if name.startswith("transformer.") else f"transformer.{name}"
        writer.add_tensor(names.get_name(base, try_suffixes=(".weight", ".bias")), wide)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    for kind in ("q8_0", "q4_0"):
        params = llama.llama_model_quantize_default_params()
        params.ftype = getattr(llama, f"LLAMA_FTYPE_MOSTLY_{kind.upper()}")
        target = str(out / f"{kind}.gguf").encode()
        failed = llama.llama_model_quantize(str(plain).encode(), target, params)
        if failed:
            raise SystemExit(f"llama.cpp could not quantise to {kind}")


CONVERT = {
    "optimum": convert_optimum,
    "ctranslate2": convert_ctranslate2,
    "ctranslate2-int8": lambda c, o: convert_ctranslate2(c, o, "int8"),
    "llama.cpp": convert_llama,
}


# ----------------------------------------------------------------------------------- serving


def memory() -> dict[str, float]:
    """Resident megabytes of this process, now and at most since the last time this was asked."""
    lines = Path("/proc/self/status").read_text().splitlines()
    found = {line.split(":")[0]: line.split()[1] for line in lines if line.startswith("Vm")}
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew
    return {"now": int(found["VmRSS"]) * 1.024e-3, "peak": int(found["VmHWM"]) * 1.024e-3}


def answer(engine: Engine, request: dict[str, Any]) -> Any:
    """Do what one line asks: {"do": name, "ids": …} and the arguments of that method."""
    what = request.pop("do")
    if what == "memory":
        return memory()
    ids = np.array(request.pop("ids"), dtype=np.int64)
    if what == "logits":
        np.save(request["to"], engine.logits(ids))
        return None
    return getattr(engine, what)(ids, **request)


def main() -> None:
    """Convert, or serve until standard input ends."""
    if sys.argv[1] == "convert":
        CONVERT[sys.argv[2]](Path(sys.argv[3]), Path(sys.argv[4]))
        return
    reply = sys.stdout
    sys.stdout = sys.stderr  # what engines print is not an answer
    for module in ENGINES[sys.argv[1]].modules:
        importlib.import_module(module)
    start = time.perf_counter()
    engine = ENGINES[sys.argv[1]](sys.argv[2], int(sys.argv[3]))
    print(json.dumps(1e3 * (time.perf_counter() - start)), file=reply, flush=True)
    for line in sys.stdin:
        print(json.dumps(answer(engine, json.loads(line))), file=reply, flush=True)


if __name__ == "__main__":
    main()
