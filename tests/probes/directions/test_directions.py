"""Directions and linear probes: equal to their definitions, and found where planted."""

import json
import math
import sys

import numpy as np
import pytest

from gpt2kit import generate
from gpt2kit.errors import InputError, MissingPackageError, TapError
from probes.directions.collecting import collect
from probes.directions.directions import Direction, mean_difference, pca_directions
from probes.directions.linear_probes import linear_probe
from probes.directions.steering import steer
from tests.conftest import CONFIG, close

TAP = "blocks.1.resid_post"
ABOVE = ["the cat", "a", "the hat, the"]
BELOW = ["xy", "the the the", "q?", "zz top"]


def random_prompts(count: int, seed: int = 0) -> list[list[int]]:
    """Prompts of 3 to 8 random tokens."""
    rng = np.random.default_rng(seed)
    return [rng.integers(0, 250, rng.integers(3, 9)).tolist() for _ in range(count)]


def one_by_one(runner, prompts, tap: str, position: int = -1) -> np.ndarray:
    """(prompts, …) the tap of each prompt run alone, without batch or padding; float64."""
    rows = [runner.tokenizer.encode(p) if isinstance(p, str) else p for p in prompts]
    taken = [runner.run(row, taps=tap).taps[tap][0] for row in rows]
    return np.stack([x[position] for x in taken]).astype(np.float64)


# Values at a position


@pytest.mark.parametrize("position", [0, -1, -3, 2])
def test_values_are_those_of_each_prompt_alone(torch_runner, runner, position):
    prompts = random_prompts(7)
    taps = [TAP, "blocks.2.z", "blocks.0.mlp_post"]
    found = collect(runner, prompts, taps=taps, position=position)
    assert set(found) == set(taps)
    for tap in taps:
        close(found[tap], one_by_one(torch_runner, prompts, tap, position))


def test_many_prompts_go_in_batches_and_keep_their_order(torch_runner, monkeypatch):
    prompts = random_prompts(60)
    sizes = []

    class Watched:
        def __getattr__(self, name):
            return getattr(torch_runner, name)

        def run(self, ids, **options):
            sizes.append(len(ids) * max(map(len, ids)))
            return torch_runner.run(ids, **options)

    monkeypatch.setattr("probes.core.batching.PROMPTS_POSITIONS", 50)
    found = collect(Watched(), prompts, taps=TAP)
    close(found[TAP], one_by_one(torch_runner, prompts, TAP))
    assert len(sizes) > 5
    assert max(sizes) <= 50


# Directions


def test_a_mean_difference_goes_from_one_mean_to_the_other(torch_runner, runner):
    direction = mean_difference(runner, ABOVE, BELOW, tap=TAP)
    above, below = (one_by_one(torch_runner, p, TAP).mean(0) for p in (ABOVE, BELOW))
    assert direction.tap == TAP
    close(direction.vector, above - below)
    close(direction.project(above), np.array(np.linalg.norm(above - below) / 2))
    close(direction.project(below + direction.vector / 2), np.array(0.0))
    coordinate = direction.project(np.stack([above, below]))
    close(coordinate[0] - coordinate[1], np.linalg.norm(above - below))
    with pytest.raises(InputError, match=r"values of shape \(2, 5\) do not fit Direction\("):
        direction.project(np.ones((2, 5)))


def test_names_of_taps_are_resolved(torch_runner):
    alias = mean_difference(torch_runner, ABOVE, BELOW, tap="blocks.-1.resid_pre", position=0)
    assert alias.tap == TAP


def test_principal_components_are_those_of_the_covariance(torch_runner, runner):
    prompts = random_prompts(12)
    found = pca_directions(runner, prompts, tap=TAP, n=3)
    x = one_by_one(torch_runner, prompts, TAP)
    values, vectors = np.linalg.eigh(np.cov(x.T))
    for i, direction in enumerate(found):
        want = vectors[:, -1 - i]
        close(direction.explained, values[-1 - i] / values.sum())
        close(direction.vector * np.sign(direction.vector @ want), want, 1e-3)
        assert direction.vector[np.abs(direction.vector).argmax()] > 0
        close(direction.project(x).var(ddof=1), values[-1 - i], 1e-3)
        close(direction.project(x).mean(), 0.0)


def test_a_planted_direction_is_found(torch_runner):
    """Half of the prompts are steered, so that they differ by the added vector."""
    planted = np.random.default_rng(1).normal(size=CONFIG.n_embd) * 20
    prompts = random_prompts(40)

    class Steered:
        """Half of the prompts are steered."""

        def __getattr__(self, name):
            return getattr(torch_runner, name)

        def run(self, ids, **options):
            direction = Direction(
                "blocks.0.resid_post", planted, planted * 0, source="", dtype="float32"
            )
            edit = direction.edit(1.0, batch=list(range(0, len(ids), 2)))
            return torch_runner.run(ids, edits=[edit], **options)

    first = pca_directions(Steered(), prompts, tap="blocks.0.resid_post", n=1)[0]
    unit = planted / np.linalg.norm(planted)
    assert abs(first.vector @ unit) > 0.99
    assert first.explained > 0.5


def test_an_edit_adds_the_vector_at_the_chosen_positions(torch_runner):
    direction = mean_difference(torch_runner, ABOVE, BELOW, tap=TAP)
    ids = torch_runner.tokenizer.encode("the cat, the hat")
    before = torch_runner.run(ids, taps=TAP).taps[TAP][0]
    after = torch_runner.run(ids, taps=TAP, edits=[direction.edit(-2.0, pos=[1, 3])]).taps[TAP][0]
    want = before.copy()
    want[[1, 3]] -= 2 * direction.vector
    close(after, want)


def test_steering_gives_the_texts_side_by_side(torch_runner):
    direction = mean_difference(torch_runner, ABOVE, BELOW, tap=TAP)
    found = steer(torch_runner, "the", direction, [-30, 0, 30], max_new_tokens=8)
    own = generate(torch_runner, "the", max_new_tokens=8, greedy=True)
    assert found.texts[1] == own
    assert found.strengths == (-30.0, 0.0, 30.0)
    edited = generate(
        torch_runner, "the", max_new_tokens=8, greedy=True, edits=[direction.edit(30)]
    )
    assert found.texts[2] == edited != own
    assert "+30" in str(found)
    assert json.loads(found.to_json())["texts"] == list(found.texts)


@pytest.mark.parametrize("strengths", [30, 30.0, np.float32(30), np.array([30])])
def test_one_strength_may_be_a_number(torch_runner, strengths):
    direction = mean_difference(torch_runner, ABOVE, BELOW, tap=TAP)
    found = steer(torch_runner, "the", direction, strengths, max_new_tokens=8)
    want = steer(torch_runner, "the", direction, [30], max_new_tokens=8)
    assert (found.strengths, found.texts) == ((30.0,), want.texts)


@pytest.mark.parametrize("strengths", ["strong", None, [1, "two"], [[1, 2], [3, 4]], [[1], [2, 3]]])
def test_strengths_that_are_not_numbers_are_refused(torch_runner, strengths):
    direction = mean_difference(torch_runner, ABOVE, BELOW, tap=TAP)
    with pytest.raises(InputError, match=r"^strengths = .* are not numbers; give one") as caught:
        steer(torch_runner, "the", direction, strengths)
    assert "\n" not in str(caught.value)


def test_directions_say_what_they_are(torch_runner):
    direction = pca_directions(torch_runner, ABOVE, tap=TAP, n=1)[0]
    assert repr(direction).startswith("Direction(random, blocks.1.resid_post, width 24, length 1, ")
    assert str(direction).split() == repr(direction).split()
    assert len(json.loads(direction.to_json())["vector"]) == 24


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda r: mean_difference(r, ABOVE, ABOVE, tap=TAP), InputError, "the same mean"),
        (lambda r: mean_difference(r, ABOVE, ABOVE[::-1], tap=TAP), InputError, "the same mean"),
        (lambda r: mean_difference(r, ABOVE, [], tap=TAP), InputError, "at least one prompt"),
        (lambda r: mean_difference(r, "ab", BELOW, tap=TAP), InputError, "must be a list"),
        (lambda r: mean_difference(r, ABOVE, BELOW, tap="blocks.0.z"), TapError, "needs a tap of"),
        (lambda r: mean_difference(r, ABOVE, BELOW, tap="blocks.*.z"), TapError, "selects 3 taps"),
        (
            lambda r: mean_difference(r, ABOVE, BELOW, tap=TAP, position=1),
            InputError,
            "position 1 does not lie in prompt 1, which has 1 token$",
        ),
        (lambda r: pca_directions(r, ABOVE, tap=TAP, n=3), InputError, "have from 1 to 2"),
        (lambda r: pca_directions(r, ABOVE, tap=TAP, n=0), InputError, "n = 0 components"),
        (
            lambda r: pca_directions(r, ["the cat"] * 4, tap=TAP, n=1),
            InputError,
            f"the 4 prompts differ at {TAP} in 0 directions only",
        ),
        (
            lambda r: pca_directions(r, ["a", "xy", "a", "xy", "a"], tap=TAP),
            InputError,
            "n = 2 components, but the 5 prompts differ at .* in 1 direction only",
        ),
        (lambda r: collect(r, ABOVE, taps="blocks.0.pattern"), TapError, "no value at a position"),
    ],
)
def test_impossible_directions_are_refused(torch_runner, call, error, message):
    with pytest.raises(error, match=message):
        call(torch_runner)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda r: mean_difference(r, None, BELOW, tap=TAP), "positive = None must be a list"),
        (lambda r: mean_difference(r, ABOVE, 5, tap=TAP), "negative = 5 must be a list"),
        (lambda r: mean_difference(r, [1.9], BELOW, tap=TAP), "a prompt is a text or a row of"),
        (lambda r: mean_difference(r, ABOVE, BELOW, tap=TAP, position=1.5), "position 1.5 must be"),
        (lambda r: pca_directions(r, ABOVE, tap=TAP, n=1.5), "n = 1.5 must be an integer"),
        (lambda r: pca_directions(r, ABOVE, tap=TAP, n=None), "n = None must be an integer"),
        (lambda r: steer(r, "a", "b", 1.0), "direction = 'b' must be a Direction"),
        (lambda r: linear_probe(r, ABOVE, None, tap=TAP), "labels = None must be a list"),
        (lambda r: linear_probe(r, None, [1], tap=TAP), "prompts = None must be a list"),
        (lambda r: linear_probe(r, "abc", [0, 1, 0], tap=TAP), "prompts = 'abc' must be a list"),
        (lambda r: linear_probe(r, ABOVE, [0, 1, 0], tap=TAP, seed=-1), "seed = -1 must"),
        (lambda r: linear_probe(r, ABOVE, [0, 1, 0], tap=TAP, seed=1.5), "seed = 1.5 must be an"),
        (lambda r: linear_probe(r, ABOVE, [0, 1, 0], tap=TAP, held_out=None), "held_out = None"),
        (lambda r: linear_probe(r, ABOVE, [0, 1, 0], tap=TAP, held_out="x"), "held_out = 'x' must"),
    ],
)
def test_wrong_types_are_refused_by_the_arguments_name(torch_runner, call, message):
    with pytest.raises(InputError, match=message) as caught:
        call(torch_runner)
    assert "\n" not in str(caught.value)


def test_directions_and_steered_texts_are_tables_and_are_read_back(torch_runner):
    direction = pca_directions(torch_runner, ABOVE, tap=TAP, n=1)[0]
    assert [row["vector"] for row in direction.table()] == direction.vector.tolist()
    assert Direction.from_json(direction.to_json()) == direction
    plain = mean_difference(torch_runner, ABOVE, BELOW, tap=TAP)
    assert plain.explained is None
    assert Direction.from_json(plain.to_json()) == plain
    found = steer(torch_runner, "the", direction, [0, 2], max_new_tokens=3)
    assert [row["strength"] for row in found.table()] == [0, 2]
    assert type(found).from_json(found.to_json()) == found


# Linear probes


@pytest.fixture(scope="module")
def planted(torch_runner):
    """Prompts, and labels that are a linear function of the stream after layer 1, with a gap."""
    prompts = random_prompts(400, seed=3)
    x = one_by_one(torch_runner, prompts, TAP)
    score = (x - x.mean(0)) @ np.random.default_rng(4).normal(size=x.shape[1])
    clear = np.abs(score) > 0.3 * score.std()
    return [p for p, keep in zip(prompts, clear, strict=True) if keep], score[clear] > 0


def test_labels_that_are_linear_in_an_activation_are_found_there(runner, planted):
    prompts, labels = planted
    probe = linear_probe(runner, prompts, labels, tap=TAP)
    assert probe.taps == (TAP,)
    assert probe.classes == ("False", "True")
    assert probe.accuracy[0] > 0.95
    assert abs(probe.control[0] - 0.5) < 0.15
    assert 0.4 < probe.majority < 0.65


def test_the_accuracy_is_that_of_the_weights_on_prompts_not_trained_on(torch_runner, planted):
    prompts, labels = planted
    probe = linear_probe(torch_runner, prompts, labels, tap="blocks.*.resid_post", held_out=0.4)
    assert probe.taps == tuple(f"blocks.{i}.resid_post" for i in range(3))
    assert probe.weights.shape == (3, 1, CONFIG.n_embd)
    held_out = probe.held_out
    assert len(set(held_out.tolist())) == len(held_out) == math.ceil(0.4 * len(prompts))
    trained = np.delete(np.asarray(labels), held_out)
    commonest = trained.mean() > 0.5
    close(probe.majority, (labels[held_out] == commonest).mean(), 1e-9)
    for r, tap in enumerate(probe.taps):
        x = one_by_one(torch_runner, [prompts[i] for i in held_out], tap)
        said = x @ probe.weights[r, 0] + probe.bias[r, 0] > 0
        close(probe.accuracy[r], (said == labels[held_out]).mean(), 1e-9)
    assert probe.accuracy[0] < 0.96 < probe.accuracy[1]  # where it was planted, and before


def test_more_than_two_classes_and_taps_with_heads(torch_runner):
    prompts = random_prompts(120, seed=5)
    words = ["low", "middle", "high"]
    labels = [words[p[-1] * 3 // 250] for p in prompts]
    probe = linear_probe(torch_runner, prompts, labels, tap="blocks.0.z", held_out=0.5)
    assert probe.classes == ("high", "low", "middle")
    assert probe.weights.shape == (1, 3, CONFIG.n_embd)
    x = one_by_one(torch_runner, [prompts[i] for i in probe.held_out], "blocks.0.z")
    said = (x.reshape(len(x), -1) @ probe.weights[0].T + probe.bias[0]).argmax(-1)
    right = [probe.classes[c] == labels[i] for c, i in zip(said, probe.held_out, strict=True)]
    close(probe.accuracy[0], np.mean(right), 1e-9)


def test_a_seed_gives_one_probe(torch_runner, planted):
    prompts, labels = planted[0][:60], planted[1][:60]
    first, again, other = (
        linear_probe(torch_runner, prompts, labels, tap=TAP, seed=seed) for seed in (0, 0, 1)
    )
    assert first.to_json() == again.to_json()
    assert first.held_out.tolist() != other.held_out.tolist()
    assert TAP in str(first)
    assert "best accuracy" in repr(first)
    assert [row["tap"] for row in first.table()] == [TAP]
    assert type(first).from_json(first.to_json()) == first


@pytest.mark.parametrize(
    ("labels", "options", "message"),
    [
        ([0, 1], {}, "2 labels for 8 prompts"),
        ([1] * 8, {}, "two classes or more"),
        ([0] * 7 + [1], {}, "held_out = 0.25 of 8 prompts: .*least populated class"),
        ([0, 1] * 4, {"held_out": 1.5}, "held_out = 1.5 of 8 prompts"),
        ([0, 1] * 4, {"tap": "blocks.0.mlp_*"}, "taps of different widths"),
        ([0, 1] * 4, {"tap": "blocks.0.pattern"}, "no value at a position"),
    ],
)
def test_labels_and_taps_that_do_not_fit_are_refused(torch_runner, labels, options, message):
    with pytest.raises(InputError, match=message):
        linear_probe(torch_runner, random_prompts(8), labels, **{"tap": TAP} | options)


def test_without_scikit_learn_it_says_what_to_install(torch_runner, monkeypatch):
    monkeypatch.setitem(sys.modules, "sklearn.model_selection", None)
    with pytest.raises(MissingPackageError, match=r"pip install gpt2kit\[probes\]"):
        linear_probe(torch_runner, random_prompts(8), [0, 1] * 4, tap=TAP)


@pytest.mark.parametrize("seed", range(4))
def test_unbalanced_labels_leave_every_class_in_the_shuffled_control(torch_runner, seed):
    prompts = [f"the {letter}" for letter in "abcdefghij"]
    labels = [1, 1] + [0] * 8
    probe = linear_probe(torch_runner, prompts, labels, tap="blocks.0.resid_post", seed=seed)
    assert 0 <= probe.control[0] <= 1
