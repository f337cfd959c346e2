"""Logit lens: what the model would predict if it stopped after each layer.

nostalgebraist 2020, "interpreting GPT: the logit lens": the residual stream after a layer is read
through the final layer norm, with a scale of its own, and the unembedding.
"""

from __future__ import annotations

from gpt2kit.checks import check_choice
from gpt2kit.defaults import Default
from gpt2kit.prompts import Prompt, Selection
from gpt2kit.runner import Runner
from gpt2kit.taps import residual_stream
from probes.lens.lens_result import LogitLens
from probes.lens.reading import Targets, read_lens

SITES = {"resid": "resid_post", "mid": "resid_mid", "attn": "attn_out", "mlp": "mlp_out"}


def logit_lens(
    runner: Runner,
    prompt: Prompt,
    *,
    top_k: int = Default(5),
    targets: Targets = (),
    sites: str = "resid",
    positions: Selection = None,
    prepend_bos: bool = False,
) -> LogitLens:
    """Read the residual stream (or what is added to it) through ln_f and the unembedding.

    prompt:  text, or token ids.
    top_k:   how many of the likeliest tokens to keep in each cell.
    targets: tokens to follow: texts, each of which must be one token, its leading space included;
             or ids.
    sites:   "resid" (the embedding, then the stream after each layer), "mid" (after each
             attention), "attn" or "mlp" (the write of each layer's attention or MLP alone).
    positions: which columns to keep; all by default, negative ones count from the end.
    prepend_bos: put `<|endoftext|>` first.
    Raises InputError for an empty or too long prompt, or a target that is not one token.
    """
    layers, tap = runner.config.n_layer, SITES[check_choice("sites", sites, SITES)]
    rows = residual_stream(layers)
    if sites != "resid":
        rows = (*(f"blocks.{i}.{tap}" for i in range(layers)), rows[-1])
    return read_lens(
        runner, prompt, rows, kind="logit lens",
        top_k=top_k, targets=targets, positions=positions, prepend_bos=prepend_bos,
    )  # fmt: skip
