"""What the tests of patching and ablation share."""

import numpy as np
import torch

from gpt2kit.taps import axes_of
from probes.core.metrics import Metric
from tests import by_hand
from tests.conftest import CONFIG, random_ids

LAYERS, HEADS, POS = range(CONFIG.n_layer), CONFIG.n_head, 6
CLEAN = random_ids(POS, seed=1)
CORRUPT = CLEAN.copy()
CORRUPT[[2, 4]] = 7, 9
DIFF = Metric.logit_diff(11, 12)
PROMPTS = [random_ids(5, seed=3), random_ids(7, seed=4), random_ids(7, seed=5)]
KINDS = ["resid_pre", "resid_mid", "resid_post", "attn_out", "mlp_out", "mlp_pre", "q", "k", "v",
         "z", "head_out", "attn_scores", "pattern", "ln_1_scale"]  # fmt: skip


class Whole:
    """A runner that cannot start at a later layer, like an engine other than torch."""

    def __init__(self, runner) -> None:
        self.config, self.tokenizer, self.source = runner.config, runner.tokenizer, runner.source
        self.run, self.dtype, self.precision = runner.run, runner.dtype, runner.precision


def logit_diff(logits: np.ndarray) -> float:
    return float(logits[0, -1, 11] - logits[0, -1, 12])


def put(value: np.ndarray, where: tuple = (...,)):
    """A change of a tap to `value` at `where`, for `by_hand.forward`."""

    def change(x: torch.Tensor) -> torch.Tensor:
        x = x.clone()
        x[where] = torch.as_tensor(value)[where]
        return x

    return change


def one_by_one(runner, over: str, cells: list[dict[str, int]]) -> np.ndarray:
    """(layers, cells) the logit difference, one plain float64 run each."""
    clean = by_hand.forward(runner.model, CLEAN[None])
    out = np.zeros((len(LAYERS), len(cells)))
    for layer in LAYERS:
        tap = f"blocks.{layer}.{over}"
        if over == "resid_pre" and layer:
            tap = f"blocks.{layer - 1}.resid_post"
        for i, cell in enumerate(cells):
            where = tuple(cell.get(axis, slice(None)) for axis in axes_of(tap))
            run = by_hand.forward(runner.model, CORRUPT[None], {tap: put(clean[tap], where)})
            out[layer, i] = logit_diff(run["logits"])
    return out
