"""A run that starts at a later layer, against the whole run."""

import numpy as np
import pytest

from gpt2kit import Edit
from gpt2kit.errors import InputError
from gpt2kit.taps import tap_axes
from tests.conftest import CONFIG, close, random_ids
from tests.probes.causal.support import LAYERS, POS


@pytest.mark.parametrize("layer", [0, 1, CONFIG.n_layer])
def test_a_run_from_a_layer_is_the_rest_of_a_run(double, layer):
    ids = random_ids(2, POS)
    order = list(tap_axes(CONFIG.n_layer))
    entry = ("blocks.0.resid_pre", *(f"blocks.{i}.resid_post" for i in LAYERS))[layer]
    later = order[order.index(entry) :]
    edits = [Edit.scale(entry, 0.5, pos=1, batch=0), Edit.steer("ln_f", np.ones(CONFIG.n_embd))]
    want = double.run(ids, taps=later, edits=edits)
    resid = double.run(ids, taps=[entry]).taps[entry]
    got = double.run_from(layer, resid, taps=later, edits=edits)
    assert list(got.taps) == list(want.taps)
    close(got.logits, want.logits, 1e-12)
    for tap in later:
        close(got.taps[tap], want.taps[tap], 1e-12)
    last = double.run_from(layer, resid, edits=edits, last_only=True)
    close(last.logits, want.logits[:, -1:], 1e-12)


@pytest.mark.parametrize(
    ("layer", "shape", "options", "message"),
    [
        (2, (1, 3, 24), {"taps": ["blocks.1.z"]}, "blocks.1.z comes before layer 2"),
        (2, (1, 3, 24), {"edits": [Edit.zero("embed")]}, "embed comes before layer 2"),
        (4, (1, 3, 24), {}, "layer = 4 must be from 0 to 3"),
        (1, (3, 24), {}, r"a residual stream is \(batch, pos, 24\), got \(3, 24\)"),
        (1, (1, 41, 24), {}, "41 positions do not fit the context of 40"),
    ],
)
def test_a_run_from_a_layer_refuses_what_it_would_not_do(
    torch_runner, layer, shape, options, message
):
    with pytest.raises(InputError, match=message):
        torch_runner.run_from(layer, np.zeros(shape, np.float32), **options)
