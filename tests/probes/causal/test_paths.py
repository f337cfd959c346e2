"""Path and attribution patching against runs with a hook on every component, in float64."""

import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from rich.cells import cell_len
from rich.console import Console

from gpt2kit import Edit, TorchRunner
from gpt2kit.errors import InputError, TapError
from gpt2kit.taps import axes_of
from probes.causal.gradients import attribution_patching, edge_attribution_patching
from probes.causal.patching import activation_patching
from probes.causal.paths import path_patching
from probes.core import batching
from probes.core.metrics import Metric
from tests import by_hand
from tests.conftest import CONFIG, byte_tokenizer, close, random_ids, random_model

LAYERS, HEADS, POS = range(CONFIG.n_layer), range(CONFIG.n_head), 5
CLEAN = random_ids(POS, seed=1)
CORRUPT = CLEAN.copy()
CORRUPT[[1, 3]] = 7, 9
DIFF = Metric.logit_diff(11, 12)
EVERY = (slice(None), slice(None))

# Each sender and receiver, in order: name -> its tap and head.
SENDERS = {"embed": ("embed", None)}
RECEIVERS = {}
for i in LAYERS:
    SENDERS |= {f"{i}.{h}": (f"blocks.{i}.head_out", h) for h in HEADS}
    SENDERS |= {f"mlp.{i}": (f"blocks.{i}.mlp_out", None)}
    RECEIVERS |= {f"{i}.{h}.{x}": (f"blocks.{i}.{x}", h) for h in HEADS for x in "qkv"}
    RECEIVERS |= {f"mlp.{i}": (f"blocks.{i}.mlp_post", None)}
RECEIVERS |= {"logits": ("blocks.2.resid_post", None)}


def comes_before(sender: str, receiver: str) -> bool:
    """The embedding comes first, the logits last; between them go the layers, heads before MLPs."""
    if sender == "embed" or receiver == "logits":
        return True
    layer = int(sender.split(".")[sender.startswith("mlp")])
    other = int(receiver.split(".")[receiver.startswith("mlp")])
    same = not sender.startswith("mlp") and receiver.startswith("mlp")
    return layer < other or (layer == other and same)


def put(value: np.ndarray, places: list[tuple]):
    """A change of a tap to `value` at some places; elsewhere it keeps its own value."""

    def change(x: torch.Tensor) -> torch.Tensor:
        x = x.clone()
        for place in places:
            x[place] = torch.from_numpy(value)[place]
        return x

    return change


class ByHand:
    """Paths the slow way: a hook holds every component but the sender."""

    def __init__(self, runner: TorchRunner, clean=CLEAN, corrupt=CORRUPT) -> None:
        self.model, self.ids = runner.model, corrupt[None]
        self.clean, self.corrupt = (by_hand.forward(self.model, x[None]) for x in (clean, corrupt))
        self.parts = ["embed", *(f"blocks.{i}.{x}_out" for i in LAYERS for x in ("head", "mlp"))]
        self.scales = [tap for tap in self.corrupt if tap.endswith("_scale")]

    def run_with_write(self, sender: str, share: float = 1.0, frozen: bool = False):
        """The run in which the sender alone writes as in the clean run.

        share: how far its write moves from the corrupt run's to the clean run's.
        """
        held = [*self.parts, *(self.scales if frozen else ())]
        values = {tap: self.corrupt[tap].copy() for tap in held}
        tap, head = SENDERS[sender]
        where = EVERY if head is None else (*EVERY, head)
        values[tap][where] += share * (self.clean[tap] - self.corrupt[tap])[where]
        return self.run({tap: torch.from_numpy(value) for tap, value in values.items()})

    def run(self, values):
        change = {tap: lambda _, value=value: value for tap, value in values.items()}
        return by_hand.forward(self.model, self.ids, change)

    def effect(self, sent, receivers: tuple[str, ...], sender: str = "embed") -> float:
        """The effect of these receivers' outputs in the run `sent`, put into the corrupt run."""
        values = {}
        for receiver in receivers:
            tap, head = RECEIVERS[receiver]
            if receiver != "logits" and comes_before(sender, receiver):
                values.setdefault(tap, []).append(EVERY if head is None else (*EVERY, head))
        run = by_hand.forward(
            self.model, self.ids, {tap: put(sent[tap], places) for tap, places in values.items()}
        )
        last = run["logits"]
        if "logits" in receivers:  # they read the write on top of the other receivers' outputs
            tap = "blocks.2.resid_post"
            stream = torch.from_numpy(run[tap] + sent[tap] - self.corrupt[tap])
            last = self.run({tap: stream})["logits"]
        base = self.corrupt["logits"]
        return float((last - base)[0, -1, 11] - (last - base)[0, -1, 12])


@pytest.fixture(scope="module")
def hand(double) -> ByHand:
    return ByHand(double)


def test_every_path_equals_a_run_with_everything_else_held(double, hand):
    got = path_patching(double, CLEAN, CORRUPT, senders="*", receivers="*", metric=DIFF)
    assert got.senders == tuple(SENDERS)
    assert got.receivers == tuple(RECEIVERS)
    for s, sender in enumerate(SENDERS):
        sent = hand.run_with_write(sender)
        for r, receiver in enumerate(RECEIVERS):
            if comes_before(sender, receiver):
                want = hand.effect(sent, (receiver,))
                assert got.scores[s, r] == pytest.approx(want, abs=1e-9), (sender, receiver)
            else:
                assert np.isnan(got.scores[s, r])
    ends = [
        run["logits"][0, -1, 11] - run["logits"][0, -1, 12] for run in (hand.clean, hand.corrupt)
    ]
    close([got.clean, got.corrupt], ends, 1e-9)
    close(got.normalised[0], got.scores[0] / (ends[0] - ends[1]), 1e-9)


def test_layer_norms_can_be_held_too(double, hand):
    receivers = ["2.*.k", "mlp.1", "logits"]
    given = {"senders": "[0-9]*", "receivers": receivers, "metric": DIFF}
    got = path_patching(double, CLEAN, CORRUPT, **given, freeze_ln=True)
    for s, sender in enumerate(got.senders):
        sent = hand.run_with_write(sender, frozen=True)
        for r, receiver in enumerate(got.receivers):
            if comes_before(sender, receiver) and receiver != "logits":
                want = hand.effect(sent, (receiver,))
                assert got.scores[s, r] == pytest.approx(want, abs=1e-9), (sender, receiver)
    assert (
        np.nanmax(np.abs(got.scores - path_patching(double, CLEAN, CORRUPT, **given).scores)) > 0.01
    )


def test_with_the_last_norm_held_the_logits_sum_what_is_sent(double, hand):
    got = path_patching(
        double, CLEAN, CORRUPT, senders="*", receivers="logits", metric=DIFF, freeze_ln=True
    )
    last = "blocks.2.resid_post"
    held = {"ln_f_scale": torch.from_numpy(hand.corrupt["ln_f_scale"])}
    whole = hand.run({last: torch.from_numpy(hand.clean[last]), **held})["logits"][0, -1]
    assert got.corrupt + got.scores.sum() == pytest.approx(whole[11] - whole[12], abs=1e-9)


def test_receivers_in_a_tuple_are_patched_together(double, hand):
    group = ("mlp.0", "1.0.q", "1.2.v", "1.1.q", "2.1.k", "logits")
    given = {"senders": ["0.*", "mlp.0", "1.*"], "metric": DIFF}
    got = path_patching(double, CLEAN, CORRUPT, **given, receivers=["mlp.2", group])
    assert got.receivers == ("mlp.2", "mlp.0 + 1.0.q + 1.1.q + 1.2.v + 2.1.k + logits")
    for s, sender in enumerate(got.senders):
        want = hand.effect(hand.run_with_write(sender), group, sender)
        assert got.scores[s, 1] == pytest.approx(want, abs=1e-9), sender
    apart = path_patching(double, CLEAN, CORRUPT, **given, receivers=list(group))
    assert np.abs(np.nansum(apart.scores, 1) - got.scores[:, 1]).max() > 0.01


def test_batches_are_as_small_as_the_limit_asks(double, monkeypatch):
    given = {"senders": "*", "receivers": ["1.*", "mlp.1"], "metric": DIFF}
    want = path_patching(double, CLEAN, CORRUPT, **given)
    monkeypatch.setattr(batching, "COPIES_POSITIONS", 2 * POS)
    got = path_patching(double, CLEAN, CORRUPT, **given)
    assert max(got.saving.batches) == 2
    close(np.nan_to_num(got.scores), np.nan_to_num(want.scores), 1e-12)
    assert got.saving.layers_run < got.saving.layers_naive


# To first order


@pytest.mark.parametrize(
    "over", ["resid_pre", "z", "q", "attn_out", "mlp_post", "pattern", "head_out"]
)
@pytest.mark.parametrize("metric", [DIFF, Metric.logprob(3), Metric.prob(3), Metric.kl()])
def test_attribution_is_the_slope_of_a_steered_run(double, over, metric):
    """Central differences: the corrupt run, steered a little towards the clean values."""
    got = attribution_patching(double, CLEAN, CORRUPT, metric=metric, over=over)
    tap = f"blocks.1.{over}" if over != "resid_pre" else "blocks.0.resid_post"
    axes, h = axes_of(tap), 1e-4
    clean, corrupt = (double.run(ids, taps=tap) for ids in (CLEAN, CORRUPT))
    change = clean.taps[tap] - corrupt.taps[tap]
    place = "head" if "head" in axes else "pos"
    reference = torch.from_numpy(clean.logits[0, -1]).log_softmax(-1).numpy()
    for i in range(got.values.shape[1]):
        mask = np.zeros((1,) * change.ndim) + np.arange(change.shape[axes.index(place)]).reshape(
            [-1 if axis == place else 1 for axis in axes]
        )
        step = change * (mask == i)
        ends = [double.run(CORRUPT, edits=[Edit.steer(tap, step, x)]) for x in (h, -h)]
        ids = metric.ids(double)[0]
        up, down = (float(metric(run.logits[:, -1], ids, reference)[0]) for run in ends)
        assert got.values[1, i] - got.corrupt == pytest.approx((up - down) / (2 * h), abs=1e-5)


def test_attribution_by_key_adds_up_and_goes_outside_the_blocks(double):
    given = {"metric": DIFF, "over": "pattern"}
    whole = attribution_patching(double, CLEAN, CORRUPT, **given)
    keys = attribution_patching(double, CLEAN, CORRUPT, **given, keys=slice(None))
    assert keys.axes == ("layer", "head", "key")
    close((keys.values - keys.corrupt).sum(-1), whole.values - whole.corrupt, 1e-9)
    assert np.ptp(keys.values[0, 0]) > 1e-3
    embed, stream = (
        attribution_patching(double, CLEAN, CORRUPT, metric=DIFF, over=over)
        for over in ("embed", "resid_pre")
    )
    assert embed.axes == ("tap", "position")
    close(embed.values[0], stream.values[0], 1e-9)  # positions are the same in both prompts


def test_edge_attribution_is_the_slope_of_path_patching(double, hand):
    got = edge_attribution_patching(double, CLEAN, CORRUPT, metric=DIFF)
    assert got.senders == tuple(SENDERS)
    assert got.receivers == tuple(RECEIVERS)
    h = 1e-4
    for s, sender in enumerate(SENDERS):
        up, down = hand.run_with_write(sender, h), hand.run_with_write(sender, -h)
        for r, receiver in enumerate(RECEIVERS):
            if comes_before(sender, receiver):
                rise = hand.effect(up, (receiver,)) - hand.effect(down, (receiver,))
                assert got.scores[s, r] == pytest.approx(rise / (2 * h), abs=1e-5)
            else:
                assert np.isnan(got.scores[s, r])
    part = edge_attribution_patching(
        double, CLEAN, CORRUPT, metric=DIFF, senders="mlp.*", receivers=["2.*.v", "logits"]
    )
    rows = [s for s, name in enumerate(got.senders) if name in part.senders]
    columns = [r for r, name in enumerate(got.receivers) if name in part.receivers]
    close(np.nan_to_num(part.scores), np.nan_to_num(got.scores[np.ix_(rows, columns)]), 1e-12)


def test_what_changes_little_is_patched_as_attributed():
    """Two tokens with almost the same embedding: higher orders vanish."""
    model = random_model(CONFIG, seed=2, dtype=torch.float64)
    noise = torch.randn(CONFIG.n_embd, generator=torch.Generator().manual_seed(0)).double()
    model.wte.weight[7] = model.wte.weight[8] + 1e-5 * noise
    runner = TorchRunner(model)
    clean, corrupt = np.array([3, 7, 5, 6]), np.array([3, 8, 5, 6])
    for over in ("z", "resid_post", "mlp_out"):
        exact, linear = (
            probe(runner, clean, corrupt, metric=DIFF, over=over)
            for probe in (activation_patching, attribution_patching)
        )
        assert np.abs(exact.normalised).max() > 0.1
        close(linear.normalised, exact.normalised, 2e-3)
    exact = path_patching(runner, clean, corrupt, senders="*", receivers="*", metric=DIFF)
    linear = edge_attribution_patching(runner, clean, corrupt, metric=DIFF)
    assert np.nanmax(np.abs(exact.normalised)) > 0.1
    close(np.nan_to_num(linear.normalised), np.nan_to_num(exact.normalised), 2e-3)


def test_gradients_leave_nothing_behind(torch_runner):
    model = torch_runner.model
    before = torch_runner.run(CORRUPT).logits
    model.requires_grad_(True)
    try:
        with torch.inference_mode():
            edge_attribution_patching(torch_runner, CLEAN, CORRUPT, metric=DIFF)
            attribution_patching(torch_runner, CLEAN, CORRUPT, metric=DIFF)
        assert all(p.grad is None and p.requires_grad for p in model.parameters())
    finally:
        model.requires_grad_(False)
    attribution_patching(torch_runner, CLEAN, CORRUPT, metric=DIFF)
    assert not any(p.requires_grad for p in model.parameters())
    assert torch.is_grad_enabled()
    np.testing.assert_array_equal(torch_runner.run(CORRUPT).logits, before)
    assert not any(module._forward_hooks for module in model.modules())


# Bad input, and how it looks


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"senders": "9.0"}, "no sender is called '9.0'; they are embed, 0.0, mlp.0, …"),
        ({"receivers": "1.0"}, "no receiver is called '1.0'; they are 0.0.q, 0.0.k, 0.0.v, mlp.0"),
        ({"receivers": ["logits", "x"]}, "no receiver is called 'x'"),
        ({"receivers": []}, "no receiver was named"),
        ({"senders": "mlp.1", "receivers": ["mlp.1", "1.*"]}, "no sender comes before a receiver"),
        ({"corrupt": CORRUPT[1:]}, "the clean prompt has 5 tokens and the corrupt one 4"),
        ({"corrupt": CLEAN}, "effects are normalised by the difference"),
        ({"metric": Metric.prob("cat")}, "'cat' is not one token"),
    ],
)
@pytest.mark.parametrize("probe", [path_patching, edge_attribution_patching])
def test_bad_input_is_one_clear_line(torch_runner, probe, options, message):
    given = {"corrupt": CORRUPT, "senders": "*", "receivers": "*", "metric": DIFF} | options
    with pytest.raises(InputError, match=message) as caught:
        probe(torch_runner, CLEAN, given.pop("corrupt"), **given)
    assert "\n" not in str(caught.value)


def test_what_has_no_gradient_or_no_tap_is_refused(torch_runner):
    for probe in (attribution_patching, edge_attribution_patching):
        with pytest.raises(InputError, match="the rank of token 11 has no gradient"):
            probe(torch_runner, CLEAN, CORRUPT, metric=Metric.rank(11))
        other = SimpleNamespace(config=CONFIG)  # as an engine that is not torch
        with pytest.raises(InputError, match="patching needs the torch engine, not namespace"):
            probe(other, CLEAN, CORRUPT, metric=DIFF)
    with pytest.raises(TapError, match="unknown tap"):
        attribution_patching(torch_runner, CLEAN, CORRUPT, metric=DIFF, over="zz")


def test_the_strongest_paths_are_shown(torch_runner):
    runner = TorchRunner(torch_runner.model, byte_tokenizer())
    metric = Metric.logit_diff("[", "/")
    given = {"senders": "*", "receivers": ["logits", "2.*"], "metric": metric}
    got = path_patching(runner, "a [/] b", "a [b] b", **given)
    top = got.top(4)
    sizes = [abs(score) for *_, score in top]
    assert sizes == sorted(sizes, reverse=True)
    assert sizes[0] == np.nanmax(np.abs(got.scores))
    for sender, receiver, score in top:
        place = got.senders.index(sender), got.receivers.index(receiver)
        assert got.scores[place] == score
    finite = int(np.isfinite(got.scores).sum())
    assert len(got.top(10**6)) == finite
    console = Console(width=80, color_system=None)
    with console.capture() as capture:
        console.print(got.render())
    text = capture.get()
    assert max(map(cell_len, text.splitlines())) <= 80
    assert "logit of '[' minus logit of '/'" in text
    assert f"{finite} paths" in text
    assert f"{top[0][2]:+.4g}" in text
    assert f"strongest from {top[0][0]} to {top[0][1]}" in repr(got)
    data = json.loads(got.to_json())
    assert data["scores"][-1][0] is None  # mlp.2 comes after 2.0.q
    assert "<pre" in got._repr_html_()
    linear = attribution_patching(runner, "a [/] b", "a [b] b", metric=metric)
    assert "attribution patching" in str(linear)
    assert linear.saving is None
