"""The names of a GPT-2's weights in a checkpoint, and the shape of each."""

from __future__ import annotations

import difflib
from functools import cache

from gpt2kit.checks import check_text
from gpt2kit.config import GPT2Config
from gpt2kit.errors import InputError


@cache
def weight_shapes(config: GPT2Config) -> dict[str, tuple[int, ...]]:
    """Every weight's name -> its shape. Matrices of a block are (in, out).

    "lm_head.weight" is included whether it is tied to the embedding or not.
    """
    d_model, d_mlp = config.n_embd, config.d_mlp
    table = (config.vocab_size, d_model)
    block: dict[str, tuple[int, ...]] = {}
    for norm in ("ln_1", "ln_2"):
        block |= {f"{norm}.weight": (d_model,), f"{norm}.bias": (d_model,)}
    for linear, sizes in (
        ("attn.c_attn", (d_model, 3 * d_model)),
        ("attn.c_proj", (d_model, d_model)),
        ("mlp.c_fc", (d_model, d_mlp)),
        ("mlp.c_proj", (d_mlp, d_model)),
    ):
        block |= {f"{linear}.weight": sizes, f"{linear}.bias": sizes[1:]}
    return {
        "wte.weight": table,
        "wpe.weight": (config.n_positions, d_model),
        **{f"h.{i}.{name}": size for i in range(config.n_layer) for name, size in block.items()},
        "ln_f.weight": (d_model,),
        "ln_f.bias": (d_model,),
        "lm_head.weight": table,
    }


def weight_shape(name: str, config: GPT2Config) -> tuple[int, ...]:
    """The shape of one weight. Raises InputError, with the nearest name, if there is none."""
    shapes = weight_shapes(config)
    check_text("name", name)
    if name not in shapes:
        near = difflib.get_close_matches(name, shapes, n=1, cutoff=0)
        raise InputError(f"unknown weight {name!r}; did you mean {near[0]!r}?")
    return shapes[name]
