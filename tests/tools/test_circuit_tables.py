"""The card's tables of circuits say what the probes find."""

import numpy as np
import pytest
from circuits import KNOWN, knock_out, knock_out_table, known_heads, repeated_losses
from corpus import Stories
from name_movers import (
    IntoHeads,
    NamePrompts,
    answer_table,
    mover_table,
    patched,
    place_of,
    stream_picture,
    strongest,
)

from gpt2kit.prompts import prompt_ids
from probes import (
    Metric,
    activation_patching,
    direct_logit_attribution,
    head_scores,
    path_patching,
)
from tests.conftest import close


@pytest.fixture(scope="module")
def names(bundled) -> NamePrompts:
    return NamePrompts.of(bundled, 4, 2)


def cells(table: str) -> list[list[str]]:
    """The rows of a Markdown table below its header."""
    return [[cell.strip() for cell in line[1:-1].split("|")] for line in table.split("\n")[2:]]


def test_the_strongest_heads():
    assert strongest(np.array([[0.1, 3.0], [-9.0, 2.0]]), 3) == [(0, 1), (1, 1), (0, 0)]


@pytest.mark.parametrize(
    ("sender", "place"), [("4.2", (4, 2)), ("10.11", (10, 11)), ("mlp.3", None), ("embed", None)]
)
def test_senders_that_are_heads(sender, place):
    assert place_of(sender) == place


def test_differences_are_those_of_single_prompts(names, bundled):
    heads = [(0, 1), (1, 0)]
    for edits in ([], knock_out(heads)):
        for i, found in enumerate(names.differences(edits)):
            ids = prompt_ids(bundled, names.pairs.prompts[i])
            logits = bundled.run(ids, edits=edits).logits[0, -1]
            close(found, logits[names.pairs.target_ids[i]] - logits[names.pairs.foil_ids[i]], 1e-3)


def test_answers_are_counted_by_the_order_of_the_names(names):
    differences = names.differences()
    rows = cells(answer_table(names))
    assert [row[1] for row in rows] == ["2", "2", "4"]
    assert rows[0][3] == f"{differences[[0, 2]].mean():+.2f}"
    assert rows[2][2] == f"{(differences > 0).mean():.0%}"


def test_looks_are_attention_between_the_names(names, bundled):
    want = 0.0
    for i in range(2):
        ids = prompt_ids(bundled, names.pairs.prompts[i])
        right = int(np.flatnonzero(ids == names.pairs.target_ids[i])[0])
        pattern = bundled.run(ids, taps="blocks.1.pattern").taps["blocks.1.pattern"]
        want += float(pattern[0, 2, -1, right]) / 2
    close(names.look("end", "right")[1, 2], want)
    found = {row[0]: row for row in cells(mover_table(names))}
    for layer, head in names.movers:
        assert found[f"{layer}.{head}"][1] == f"{names.direct[layer, head]:+.2f}"


def test_direct_effects_are_those_on_the_difference(names, bundled):
    parts = [
        direct_logit_attribution(
            bundled, names.pairs.prompts[i], target=names.pairs.target[i],
            foil=names.pairs.foil[i], by="head",
        ).values["head"]
        for i in range(2)
    ]  # fmt: skip
    close(names.direct, np.mean(parts, axis=0), 1e-3)


def test_heads_are_known_by_their_scores(bundled):
    scores = head_scores(bundled)
    known = known_heads(scores)
    assert set(known["induction"]) == {(i, j) for i, j in np.argwhere(scores.induction >= KNOWN)}
    assert "duplicate token" not in known or scores.duplicate_token.max() >= KNOWN


def test_patched_shares_are_those_of_single_prompts(names, bundled):
    gains = spans = 0.0
    for i in range(2):
        metric = Metric.logit_diff(int(names.pairs.target_ids[i]), int(names.pairs.foil_ids[i]))
        one = activation_patching(
            bundled, names.pairs.prompts[i], names.pairs.corrupt[i], metric=metric,
            over="z", heads=[1], positions=[-1],
        )  # fmt: skip
        gains = gains + one.values[:, 0, 0] - one.corrupt
        spans += one.clean - one.corrupt
    close(patched(names)[:, 1], gains / spans, 1e-3)


def test_paths_into_heads_are_patched_together(names, bundled):
    heads = [(2, 0), (2, 1)]
    found = IntoHeads.of(names, heads)
    gains = spans = 0.0
    for i in range(2):
        one = path_patching(
            bundled, names.pairs.prompts[i], names.pairs.corrupt[i], senders="mlp.1",
            receivers=[("2.0.k", "2.1.k")], metric=names.metric(i),
        )  # fmt: skip
        gains += one.scores[0, 0]
        spans += one.clean - one.corrupt
    close(found.shares[found.senders.index("mlp.1"), 1], gains / spans, 1e-3)
    assert np.isnan(found.shares[found.senders.index("mlp.2")]).all()  # comes after layer 2 reads
    assert all(layer < 2 for layer, _ in found.feeders(5))
    assert "nan" not in found.table(names)


def test_a_picture_has_a_line_for_each_token(names, bundled):
    ids = prompt_ids(bundled, names.pairs.prompts[0])
    assert len(stream_picture(names).splitlines()) == len(ids) + 3


def test_knocking_out_is_compared_with_nothing(names, bundled):
    some = Stories([np.array(bundled.tokenizer.encode("<|endoftext|>The dog saw the cat."))], 20)
    rows = cells(knock_out_table(bundled, [("two heads", [(0, 0), (1, 1)])], names, some))
    assert [row[0] for row in rows] == ["nothing", "two heads (0.0, 1.1)"]
    assert rows[0][1] == f"{repeated_losses(bundled)[1]:.2f}"
    edits = knock_out([(0, 0), (1, 1)])
    assert rows[1][3] == f"{names.differences(edits).mean():+.2f}"
    assert rows[1][1:] != rows[0][1:]
