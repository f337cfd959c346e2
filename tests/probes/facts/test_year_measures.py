"""What is measured on years, against its definition written out."""

import numpy as np
import pytest
import torch

from probes.facts import year_measures
from probes.tasks.greater_than import greater_than
from tests.conftest import close
from tests.probes.facts.support import EVERY, LAYERS, ids_of, logits_of, order


def years_by_hand(runner, ids, prompt, edits=None) -> float:
    p, first = logits_of(runner, ids, edits)[-1].softmax(-1), int(prompt.split("year ")[1][2:4])
    years = p[[runner.tokenizer.single(f"{y:02d}") for y in range(100)]]
    return float(years[first + 1 :].sum() - years[: first + 1].sum())


@pytest.fixture(scope="module")
def dated(by_torch) -> list[str]:
    return list(greater_than(by_torch.tokenizer, 8).prompts)


def test_years_are_later_ones_minus_earlier_ones(runner, by_torch, dated):
    want = [years_by_hand(by_torch, ids_of(by_torch, p), p) for p in dated]
    assert np.ptp(want) > 0.01
    close(year_measures.years(runner), [np.mean(want)], 1e-5)


@pytest.mark.parametrize("over", ["z", "mlp_out"])
def test_years_fall_with_what_is_patched_in_at_the_end(runner, by_torch, dated, over):
    places = EVERY if over == "z" else [(layer, 0) for layer in range(LAYERS)]
    falls = np.zeros(len(places))
    for prompt in dated:
        ids = ids_of(by_torch, prompt)
        century = prompt.split("year ")[1][:2]
        other = prompt.replace(prompt.split("year ")[1][:4], f"{century}01")
        values = by_torch.run(ids_of(by_torch, other), taps=f"*.{over}").taps
        for n, (layer, head) in enumerate(places):
            tap = f"blocks.{layer}.{over}"
            new = torch.from_numpy(values[tap])

            def put_in(x, head=head, value=new):
                x = x.clone()
                at = (0, -1, head) if over == "z" else (0, -1)
                x[at] = value[at]
                return x

            found = years_by_hand(by_torch, ids, prompt, {tap: put_in})
            falls[n] += years_by_hand(by_torch, ids, prompt) - found
    assert year_measures.years_patching(runner, over=over, places=places) == order(falls)
