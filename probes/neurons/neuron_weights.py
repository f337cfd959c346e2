"""What one neuron reads and writes, by its weights, and the tokens nearest to a direction.

A neuron is one hidden unit of an MLP; its activation is its entry of `mlp_post`. It reads the
normalised stream through a column of W_in and writes its activation times a row of W_out. Geva et
al. 2022, "Transformer Feed-Forward Layers Build Predictions by Promoting Concepts in the
Vocabulary Space", arXiv 2203.14680.
"""

from __future__ import annotations

from typing import NamedTuple

from gpt2kit.checks import check_top_k
from gpt2kit.logits import largest
from gpt2kit.prompts import token_texts, tokenizer_of
from gpt2kit.readout import Floats, Ints
from gpt2kit.runner import Runner
from probes.core.parts import check_neuron, tap_at


class Neuron(NamedTuple):
    """A neuron that exists, and its weights without the scales of the layer norms.

    read: (d_model,) what its input is the product with: a column of W_in times the gain of ln_2,
    less its mean. written: (d_model,) what it adds to the unembedding's input: a row of W_out less
    its mean, times the gain of ln_f.
    """

    layer: int
    neuron: int
    read: Floats
    written: Floats


def find_neuron(runner: Runner, layer: int, neuron: int) -> Neuron:
    """A neuron's weights. A negative layer counts from the end. Raises InputError, TapError."""
    layer = tap_at(runner.config, layer, "mlp_post")[1]
    neuron = check_neuron(runner.config, neuron)
    block = f"h.{layer}"
    read = runner.weight(f"{block}.mlp.c_fc.weight")[:, neuron]
    read = read * runner.weight(f"{block}.ln_2.weight")
    written = runner.weight(f"{block}.mlp.c_proj.weight")[neuron]
    written = (written - written.mean()) * runner.weight("ln_f.weight")
    return Neuron(layer, neuron, read - read.mean(), written)


def top_tokens(runner: Runner, values: Floats, top_k: int) -> tuple[Ints, tuple[str, ...], Floats]:
    """The top_k largest of values (vocab,), largest first: ids, texts, values, each (top_k,)."""
    top_k = check_top_k(top_k, len(values))
    tokenizer_of(runner)  # a list of bare ids would say nothing
    best, ids = largest(values, top_k)
    return ids, token_texts(runner, ids), best
