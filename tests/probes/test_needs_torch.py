"""Probes that need torch say so on the other engine."""

import pytest

from gpt2kit.errors import InputError
from probes.attribution.inputs import input_attribution
from probes.causal.gradients import attribution_patching, edge_attribution_patching
from probes.core.metrics import Metric
from probes.core.processed_weights import processed
from probes.lens.tuned_training import train_tuned_lens
from tests.probes.attribution.support import PROMPT

NEEDING_TORCH = {
    "input attribution": lambda r: input_attribution(r, PROMPT, target="a"),
    "attribution patching": lambda r: attribution_patching(r, "a", "b", metric=Metric.prob("c")),
    "edge attribution patching": lambda r: edge_attribution_patching(
        r, "a", "b", metric=Metric.prob("c")
    ),
    "training a tuned lens": lambda r: train_tuned_lens(r, PROMPT * 9, length=8),
    "rewriting weights": processed,
}


@pytest.mark.parametrize("what", NEEDING_TORCH)
def test_what_needs_torch_says_so(onnx_runner, what):
    with pytest.raises(InputError, match=rf"^{what} needs the torch engine, not OnnxRunner\("):
        NEEDING_TORCH[what](onnx_runner)
