"""Weight-only quantisation to 8 or 4 bits.

Matrices become integers in blocks (`exporters.file.packing`), rounded by `rounding`, multiplied by
`packed_modules`. The unembedding has 8 bits, or 4 for "int4-all", and the embedding reads the same
copy. Biases, norms and positions stay float32.

`pack` gives the model that is traced; `unpack` gives the same weights as plain floats, to compare
with.
"""

from __future__ import annotations

from torch import nn

from exporters.file.packing import BITS
from exporters.tracing.packed_modules import PackedLinear, PackedTable
from gpt2kit.config import GPT2Config
from gpt2kit.errors import ExportError
from gpt2kit.model import GPT2, Conv1D

SHORTEST_BLOCK = 16  # onnxruntime's limit


def pack(model: GPT2, kind: str) -> GPT2:
    """Replace the matrices of `model` by packed ones, in place, and return it.

    kind: a key of `BITS`. The packed model can be traced, but not run.
    """
    bits, head_bits = BITS[kind]
    for name, module in list(model.named_modules()):
        if isinstance(module, Conv1D):
            model.set_submodule(name, PackedLinear(module, bits))
    for name in ("wte",) if model.config.tie_word_embeddings else ("wte", "lm_head"):
        table = model.get_submodule(name)
        assert isinstance(table, nn.Embedding)
        model.set_submodule(name, PackedTable(table, head_bits))
    return model


def check_blocks(config: GPT2Config) -> None:
    """Raise ExportError if a matrix cannot be cut into blocks that onnxruntime multiplies."""
    for name, width in (("n_embd", config.n_embd), ("n_inner", config.d_mlp)):
        if width % SHORTEST_BLOCK:
            raise ExportError(
                f"{name} = {width} cannot be quantised: it is not a multiple of {SHORTEST_BLOCK}; "
                "leave --quantize out"
            )


def unpack(model: GPT2) -> GPT2:
    """The plain float32 model with the weights that a packed model stands for."""
    weights = {name: x for name, x in model.state_dict().items() if ".weight." not in name}
    for name, module in model.named_modules():
        if isinstance(module, PackedLinear):
            weights[f"{name}.weight"] = module.weight.dequantised().T.contiguous()
        elif isinstance(module, PackedTable):
            weights[f"{name}.weight"] = module.weight.dequantised()
    return GPT2.from_weights(model.config, weights)
