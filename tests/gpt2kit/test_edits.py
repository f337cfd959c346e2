"""Every edit against the same change made by hand; edits through the cache; bad edits."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from gpt2kit import Edit
from gpt2kit.edit_arrays import Chunk, affine
from gpt2kit.errors import EditError, InputError, TapError
from gpt2kit.taps import axes_of, tap_axes
from tests.by_hand import forward
from tests.conftest import CONFIG, carried, close, random_ids

TAPS = tuple(tap_axes(3))
IDS = random_ids(2, 9)
SIZES = {"batch": 2, "pos": 9, "query": 9, "key": 9, "head": 3}
SIZES |= {"d_model": 24, "d_head": 8, "d_mlp": 96, "one": 1}


def rng(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape) * 0.5


def shape_of(tap: str, **change: int) -> tuple[int, ...]:
    return tuple((SIZES | change)[axis] for axis in axes_of(tap))


def tensor(x) -> torch.Tensor:
    return torch.as_tensor(np.asarray(x), dtype=torch.float64)


def same_as_by_hand(double, edits, change, ids=IDS) -> None:
    run, want = double.run(ids, edits=edits, taps="*"), forward(double.model, ids, change)
    for name in TAPS:
        close(run.taps[name], want[name], 1e-9)
    close(run.logits, want["logits"], 1e-9)


@pytest.mark.parametrize("tap", TAPS)
def test_an_edit_of_any_tap_equals_the_change_by_hand(double, tap):
    keep, add = rng(*shape_of(tap)) + 1.5, rng(*shape_of(tap), seed=1) * 0.1
    change = {tap: lambda x: tensor(keep) * x + tensor(add)}
    same_as_by_hand(double, [Edit(tap, keep, add)], change)


@pytest.mark.parametrize("tap", TAPS)
def test_any_tap_can_be_edited_with_effect_and_an_identity_has_none(torch_runner, tap):
    plain = torch_runner.run(IDS).logits
    add = rng(*shape_of(tap))  # scores do not notice a constant
    moved = torch_runner.run(IDS, edits=[Edit(tap, 2.0, add)]).logits
    assert np.abs(moved - plain).max() > 0.01
    close(torch_runner.run(IDS, edits=[Edit(tap)]).logits, plain)
    close(torch_runner.run(IDS, edits=[(tap, lambda x: x)]).logits, plain)


def at_head(x, index, change):
    x = x.clone()
    x[:, :, index] = change(x[:, :, index])
    return x


def at_rows(x, rows, columns, change):
    x = x.clone()
    for row in rows:
        for column in columns:
            x[row, column] = change(x[row, column])
    return x


RESID, Z, PATTERN = "blocks.1.resid_mid", "blocks.1.z", "blocks.2.pattern"
VECTOR, MEAN, FULL = rng(24), rng(1, 1, 24, seed=2), rng(2, 9, 24, seed=3)
HEAD_VALUE, CELLS = rng(2, 9, 8, seed=4), rng(2, 24, seed=5)
KINDS = {
    "zero ablation": (Edit.zero(RESID), RESID, lambda x: 0 * x),
    "mean ablation": (Edit.replace(RESID, MEAN), RESID, lambda x: 0 * x + tensor(MEAN)),
    "resample": (Edit.replace(RESID, FULL), RESID, lambda x: tensor(FULL)),
    "steering": (Edit.steer(RESID, VECTOR, 3.0), RESID, lambda x: x + 3 * tensor(VECTOR)),
    "scaling": (Edit.scale(RESID, 0.5), RESID, lambda x: x / 2),
    "scaling by axis": (Edit.scale(RESID, VECTOR), RESID, lambda x: x * tensor(VECTOR)),
    "integers": (Edit(RESID, 2, 1), RESID, lambda x: 2 * x + 1),
    "head knock-out": (Edit.zero(Z, head=1), Z, lambda x: at_head(x, 1, lambda y: 0 * y)),
    "last head": (Edit.zero(Z, head=-1), Z, lambda x: at_head(x, 2, lambda y: 0 * y)),
    "two heads": (Edit.scale(Z, 3, head=[0, 2]), Z, lambda x: at_head(x, [0, 2], lambda y: 3 * y)),
    "head slice": (
        Edit.scale(Z, 3, head=slice(1, None)),
        Z,
        lambda x: at_head(x, slice(1, None), lambda y: 3 * y),
    ),
    "patch a head": (
        Edit.replace(Z, HEAD_VALUE, head=2),
        Z,
        lambda x: at_head(x, 2, lambda y: tensor(HEAD_VALUE)),
    ),
    "patch positions": (
        Edit.replace(RESID, CELLS, pos=[5, 2], batch=0),
        RESID,
        lambda x: x.index_put((torch.tensor([0, 0]), torch.tensor([5, 2])), tensor(CELLS)),
    ),
    "last position": (
        Edit.steer(RESID, VECTOR, pos=-1),
        RESID,
        lambda x: at_rows(x, [0, 1], [8], lambda y: y + tensor(VECTOR)),
    ),
    "every other position": (
        Edit.zero(RESID, pos=slice(None, None, 2)),
        RESID,
        lambda x: at_rows(x, [0, 1], range(0, 9, 2), lambda y: 0 * y),
    ),
    "one row": (
        Edit.steer(RESID, VECTOR, batch=1),
        RESID,
        lambda x: at_rows(x, [1], range(9), lambda y: y + tensor(VECTOR)),
    ),
    "a neuron": (
        Edit.replace("blocks.0.mlp_post", 2.5, d_mlp=7),
        "blocks.0.mlp_post",
        lambda x: x.index_fill(-1, torch.tensor([7]), 2.5),
    ),
    "one edge of attention": (
        Edit.zero(PATTERN, head=0, query=6, key=3),
        PATTERN,
        lambda x: x.index_put(
            (torch.arange(2), *(torch.tensor(i) for i in (0, 6, 3))), tensor(0.0)
        ),
    ),
    "nothing": (Edit.zero(RESID, pos=[]), RESID, lambda x: x),
}


@pytest.mark.parametrize("kind", KINDS)
def test_a_kind_of_edit_equals_the_change_by_hand(double, kind):
    edit, tap, change = KINDS[kind]
    same_as_by_hand(double, [edit], {tap: change})


@pytest.mark.parametrize("tap", TAPS)
def test_replacing_a_tap_with_its_own_value_changes_nothing(double, tap):
    run = double.run(IDS, taps=tap)
    close(double.run(IDS, edits=[Edit.replace(tap, run.taps[tap])]).logits, run.logits, 1e-9)


def test_patching_everything_at_a_layer_gives_the_other_run(double):
    other = double.run(random_ids(2, 9, seed=5), taps="blocks.1.resid_post")
    patch = Edit.replace("blocks.1.resid_post", other.taps["blocks.1.resid_post"])
    close(double.run(IDS, edits=[patch]).logits, other.logits, 1e-9)


@pytest.mark.parametrize(
    "alias", ["blocks.1.resid_pre", "blocks.1.hook_resid_pre", "blocks.0.hook_resid_post"]
)
def test_an_alias_fires_once(torch_runner, alias):
    canonical = "blocks.0.resid_post"
    once = torch_runner.run(IDS, edits=[Edit.scale(canonical, 2)], taps="*")
    run = torch_runner.run(IDS, edits=[Edit.scale(alias, 2)], taps=[alias, canonical])
    assert list(run.taps) == [canonical]
    close(run.logits, once.logits)
    count = []
    torch_runner.run(IDS, edits=[(alias, lambda x: count.append(1) or x)])
    assert count == [1]


def test_a_glob_over_both_spellings_edits_each_tap_once(double):
    both = "blocks.[01].*resid_p*"  # resid_post of 0 twice over, as resid_pre of 1 too
    names = ["blocks.0.resid_pre", "blocks.0.resid_post", "blocks.1.resid_post"]
    same_as_by_hand(double, [Edit.scale(both, 2)], {name: lambda x: 2 * x for name in names})


def test_edits_of_one_tap_compose_in_order(double):
    keep, add = rng(2, 9, 24), rng(24, seed=1)
    edits = [
        Edit.steer("blocks.0.resid_post", add),
        (RESID, lambda x: x - 1),
        Edit(RESID, keep, 1.0),
        Edit.zero(RESID, pos=4),
        (RESID, lambda x: 2 * x),
        Edit.steer("blocks.1.hook_resid_mid", add, pos=[4, 5]),
    ]

    def by_hand(x):
        x = (x - 1) * tensor(keep) + 1
        x[:, 4] = 0
        x = 2 * x
        x[:, 4:6] += tensor(add)
        return x

    change = {RESID: by_hand, "blocks.0.resid_post": lambda x: x + tensor(add)}
    same_as_by_hand(double, edits, change)


def test_affine_composes_several_edits_into_one():
    tap, chunk = "blocks.0.resid_post", Chunk(np.zeros(1, np.int64), 4, 4)
    edits = [Edit(tap, 2.0, 3.0), Edit.zero(tap, pos=1), Edit.steer("blocks.1.resid_pre", rng(24))]
    keep, add = affine(edits, CONFIG, chunk)[tap]
    x = rng(1, 4, 24, seed=9)
    want = 2 * x + 3
    want[:, 1] = 0
    close(keep * x + add, want + rng(24), 1e-6)


def test_a_tap_shows_the_value_after_the_edit(torch_runner):
    run = torch_runner.run(IDS, edits=[Edit.replace(RESID, 7.0, pos=3)], taps=RESID)
    assert (run.taps[RESID][:, 3] == 7).all()
    assert not (run.taps[RESID][:, 2] == 7).any()


def test_rows_of_a_batch_take_edits_of_their_own(double):
    """One batch of three interventions equals three runs."""
    ids, edits = IDS[:1], [Edit.zero(Z, head=0), Edit.steer(RESID, VECTOR, pos=4), Edit.scale(Z, 2)]
    batched = [Edit(e.tap, e.keep, e.add, {**e.at, "batch": i}) for i, e in enumerate(edits)]
    run = double.run(ids.repeat(3, 0), edits=batched, taps="*")
    for i, edit in enumerate(edits):
        alone = double.run(ids, edits=[edit], taps="*")
        close(run.logits[i], alone.logits[0], 1e-9)
        for name in TAPS:
            close(run.taps[name][i], alone.taps[name][0], 1e-9)


def test_no_edit_outlives_its_run(torch_runner):
    plain = torch_runner.run(IDS).logits
    torch_runner.run(IDS, edits=[Edit.zero(RESID)])
    with pytest.raises(ZeroDivisionError):
        torch_runner.run(IDS, edits=[(RESID, lambda x: 1 / 0)])
    assert (torch_runner.run(IDS).logits == plain).all()


# Through the cache


CACHED_EDITS = {
    "everywhere": [Edit.steer(RESID, VECTOR)],
    "one position": [Edit.steer(RESID, VECTOR, pos=6)],
    "some positions": [Edit.replace(RESID, rng(3, 24), pos=[7, 1, 4])],
    "a slice": [Edit.steer(RESID, rng(4, 24), pos=slice(3, 7))],
    "an array over all positions": [Edit.replace(RESID, rng(1, 9, 24))],
    "keys and values": [Edit.scale("blocks.1.k", 2, pos=2), Edit.zero("blocks.1.v", pos=[0, 5])],
    "an edge": [Edit.zero(PATTERN, query=7, key=slice(1, 4))],
    "scores over all": [Edit("blocks.1.attn_scores", rng(9, 9), rng(3, 9, 9))],
    "a pattern's keys": [Edit.scale(PATTERN, rng(9), head=1)],
    "a chain": [Edit.zero(Z, head=2, pos=5), Edit.scale(Z, 2), Edit.steer("embed", VECTOR, pos=8)],
    "a function": [(RESID, lambda x: x * 1.5)],
    "every scale": [Edit.scale("*_scale", 1.25, pos=slice(2, 6))],
}


def in_chunks(runner, ids, sizes, **options):
    """Logits and taps of ids (batch, pos), run in chunks of these sizes, put together again."""
    cache, logits, taps, start = runner.new_cache(len(ids)), [], [], 0
    for size in sizes:
        run = runner.run(ids[:, start : start + size], cache=cache, taps=carried(runner), **options)
        cache, start = run.cache, start + size
        logits.append(run.logits)
        taps.append(run.taps)
    keys = ids.shape[1]
    joined = {}
    for name in taps[0]:
        parts = [part[name] for part in taps]
        if "key" in axes_of(name):
            parts = [np.pad(p, [(0, 0)] * 3 + [(0, keys - p.shape[3])]) for p in parts]
        joined[name] = np.concatenate(parts, 2 if "query" in axes_of(name) else 1)
    return np.concatenate(logits, 1), joined


def same_taps(name, got, want, tolerance=1e-9):
    if name.endswith("attn_scores"):  # a chunk does not hold the keys after it
        seen = np.tril(np.ones(want.shape[-2:], bool))
        got, want = got[..., seen], want[..., seen]
    close(got, want, tolerance)


@pytest.mark.parametrize("kind", CACHED_EDITS)
@pytest.mark.parametrize("sizes", [[9], [4, 5], [1] * 9, [6, 1, 2]], ids=str)
def test_edits_through_a_cache_stay_at_their_positions(double, kind, sizes):
    edits = CACHED_EDITS[kind]
    want = double.run(IDS, edits=edits, taps="*")
    logits, taps = in_chunks(double, IDS, sizes, edits=edits)
    close(logits, want.logits, 1e-9)
    for name in TAPS:
        same_taps(name, taps[name], want.taps[name])


@pytest.mark.parametrize("kind", CACHED_EDITS)
def test_edits_through_a_cache_stay_at_their_positions_in_ragged_batches(double, kind):
    edits = CACHED_EDITS[kind]
    cuts = [[0, 3, 4, 9], [0, 5, 7, 8], [0, 1, 2, 3]]  # where each row's chunks begin
    ids = random_ids(3, 9)
    cache = double.new_cache(3)
    for step in range(3):
        chunk = [row[cut[step] : cut[step + 1]] for row, cut in zip(ids, cuts, strict=True)]
        run = double.run(chunk, cache=cache, edits=edits, taps="*")
        cache = run.cache
        for row, cut in enumerate(cuts):
            start, end = cut[step], cut[step + 1]
            alone = double.run(ids[row : row + 1], edits=edits, taps="*")
            close(run.logits[row, : end - start], alone.logits[0, start:end], 1e-9)
            for name, value in run.taps.items():
                want = alone.taps[name][0]
                if "key" in axes_of(name):
                    got, want = (
                        value[row, :, : end - start, : start + 1],
                        want[:, start:end, : start + 1],
                    )
                else:
                    got, want = value[row, : end - start], want[start:end]
                close(got, want, 1e-9)


@st.composite
def edit_and_chunk(draw):
    """An edit of a tap, the length of the whole sequences, and a chunk of them."""
    tap = draw(st.sampled_from(["blocks.1.resid_post", "blocks.0.z", "blocks.0.pattern"]))
    axes, batch, length = axes_of(tap), draw(st.integers(1, 3)), draw(st.integers(2, 7))
    pos = draw(st.integers(1, length))
    starts = draw(st.lists(st.integers(0, length - pos), min_size=batch, max_size=batch))
    sizes = dict.fromkeys(("pos", "query", "key"), length)
    sizes |= {"batch": batch, "head": 3, "d_model": 24, "d_head": 8}
    at = {}
    for axis in draw(st.lists(st.sampled_from(axes), unique=True)):
        inside = st.integers(0, sizes[axis] - 1)
        span = st.builds(slice, inside, st.integers(1, sizes[axis]), st.sampled_from([None, 2]))
        at[axis] = draw(st.one_of(inside, st.lists(inside, unique=True, max_size=4), span))
    full = []
    for axis in axes:
        index = at.get(axis, slice(None))
        if not isinstance(index, int):
            full.append(
                len(
                    np.empty(sizes[axis])[index if isinstance(index, slice) else list(index)]
                    if index != []
                    else []
                )
            )

    def value():
        some = draw(st.integers(0, len(full)))
        shape = [n if draw(st.booleans()) else 1 for n in full[some:]]
        return rng(*shape, seed=draw(st.integers(0, 99)))

    return Edit(tap, value(), value(), at), np.array(starts, np.int64), pos, length


@given(edit_and_chunk())
@settings(deadline=None, max_examples=300)
def test_an_edit_on_a_chunk_is_that_part_of_the_whole_edit(drawn):
    edit, starts, pos, length = drawn
    axes = axes_of(edit.tap)
    whole = affine([edit], CONFIG, Chunk(starts * 0, length, length))[edit.tap]
    keys = int(starts.max()) + pos
    chunk = Chunk(starts, pos, keys, cached=True)
    part = affine([edit], CONFIG, chunk)[edit.tap]
    shape = [chunk.size(axis, CONFIG) for axis in axes]
    dense = Chunk(starts, length, length)
    for got, want in zip(part, whole, strict=True):
        want = np.broadcast_to(want, [dense.size(axis, CONFIG) for axis in axes])
        for row, start in enumerate(starts):
            mine = want[row]
            cut = [slice(None)] * len(axes)
            for dim, axis in enumerate(axes):
                if axis in ("pos", "query"):
                    cut[dim] = slice(start, start + pos)
                elif axis == "key":
                    cut[dim] = slice(0, keys)
            assert (np.broadcast_to(got, shape)[row] == mine[tuple(cut[1:])]).all()


@given(edit_and_chunk())
@settings(deadline=None, max_examples=200)
def test_an_edit_is_numpy_indexing(drawn):
    """`x[at] = keep * x[at] + add`, whichever axes `at` names."""
    edit, starts, _, length = drawn
    axes, chunk = axes_of(edit.tap), Chunk(starts * 0, length, length)
    keep, add = affine([edit], CONFIG, chunk)[edit.tap]
    x = rng(*(chunk.size(axis, CONFIG) for axis in axes), seed=3)
    index = [edit.at.get(axis, slice(None)) for axis in axes]
    places = [
        np.arange(n)[i if isinstance(i, slice) else np.atleast_1d(np.array(i, int))]
        for n, i in zip(x.shape, index, strict=True)
    ]
    dropped = tuple(d for d, i in enumerate(index) if isinstance(i, int))
    want, part = x.copy(), x[np.ix_(*places)].squeeze(dropped)
    part = edit.keep.astype(np.float64) * part + edit.add
    want[np.ix_(*places)] = np.expand_dims(part, dropped)
    close(keep * x + add, want, 1e-12)


# Bad edits


@pytest.mark.parametrize(
    ("edit", "words"),
    [
        (Edit.steer(RESID, rng(23)), r"shape \(23,\) does not broadcast .*d_model 24"),
        (Edit.replace(RESID, rng(2, 5, 24)), r"shape \(2, 5, 24\).*pos 9"),
        (Edit.replace(RESID, rng(1, 2, 9, 24)), r"shape \(1, 2, 9, 24\)"),
        (Edit.replace(Z, rng(2, 9, 1, 8), head=1), r"\(2, 9, 1, 8\).*batch 2, pos 9, d_head 8"),
        (Edit.replace(RESID, rng(3, 24), pos=[1, 2]), r"shape \(3, 24\).*pos 2"),
        (Edit.zero(Z, head=3), "head = 3 is out of range; the size is 3"),
        (Edit.zero(Z, pos=[0, 9]), "out of range; the size is 9"),
        (Edit.zero(Z, pos=-10), "out of range"),
        (Edit.zero(Z, d_model=3), "has no axis 'd_model'; its axes are"),
        (Edit.zero(Z, head=1.5), "must be an integer, a list of integers"),
        (Edit.zero(Z, head=np.array([True, False, True])), "mask"),
        (Edit.replace(RESID, "loud"), "must be numbers"),
        ((RESID, lambda x: x[:, :1]), r"must return shape \(2, 9, 24\), got \(2, 1, 24\)"),
        ((RESID, lambda x: None), "got NoneType"),
        ("blocks.0.z", "is text; Edit.parse makes"),
    ],
)  # fmt: skip
def test_a_bad_edit_says_what_is_wrong_in_one_line(torch_runner, edit, words):
    with pytest.raises(EditError, match=words) as caught:
        torch_runner.run(IDS, edits=[edit])
    assert "\n" not in str(caught.value)
    assert isinstance(caught.value, InputError)


@pytest.mark.parametrize(
    ("edit", "words"),
    [
        (Edit.zero(RESID, pos=-1), "negative pos is ambiguous under a cache"),
        (Edit.zero(RESID, pos=slice(None, -1)), "negative pos is ambiguous under a cache"),
        (Edit.zero(RESID, pos=slice(-3, 5)), "negative pos is ambiguous under a cache"),
        (Edit.zero(RESID, pos=40), "pos = 40 is out of range; the size is 40"),
        (Edit.replace(RESID, rng(1, 3, 24)), r"shape \(1, 3, 24\) does not broadcast"),
    ],
    ids=str,
)
def test_a_bad_edit_under_a_cache_says_what_is_wrong(torch_runner, edit, words):
    cache = torch_runner.run(IDS[:, :4], cache=torch_runner.new_cache(2)).cache
    with pytest.raises(EditError, match=words):
        torch_runner.run(IDS[:, 4:7], cache=cache, edits=[edit])


def test_slices_of_heads_mean_the_same_under_a_cache(torch_runner):
    edit = Edit.replace(Z, rng(2, 8), head=slice(1, 99))
    want = torch_runner.run(IDS, edits=[edit])
    close(torch_runner.run(IDS, edits=[edit], cache=torch_runner.new_cache(2)).logits, want.logits)


def test_an_open_slice_goes_on_under_a_cache(torch_runner):
    edit = Edit.steer(RESID, rng(24), pos=slice(3, None))
    want = torch_runner.run(IDS, edits=[edit]).logits
    cache, got = torch_runner.new_cache(2), []
    for part in np.split(IDS, [2, 5, 6], axis=1):
        run = torch_runner.run(part, edits=[edit], cache=cache)
        cache, got = run.cache, [*got, run.logits]
    close(np.concatenate(got, axis=1), want)


def test_an_edit_of_an_unknown_tap_suggests_the_nearest(torch_runner):
    with pytest.raises(TapError, match=r"unknown tap 'blocks.0.zz'; did you mean 'blocks.0.z'\?"):
        torch_runner.run(IDS, edits=[Edit.zero("blocks.0.zz")])
    with pytest.raises(TapError, match="the model has layers 0 to 2"):
        torch_runner.run(IDS, edits=[("blocks.3.z", lambda x: x)])


def test_an_edit_shows_what_it_is():
    assert repr(Edit.zero("blocks.9.z", head=9)) == "Edit('blocks.9.z', keep=0.0, add=0.0, head=9)"
    assert repr(Edit.steer("ln_f", rng(24))) == "Edit('ln_f', keep=1.0, add=array(24,))"


@pytest.mark.parametrize(
    ("edits", "words"),
    [
        (Edit.zero(Z), r"must be a list of edits, .* put \[ \] around it"),
        ("blocks.1.z = 0", "must be a list of edits"),
        (["blocks.1.z = 0"], "is text; Edit.parse makes an Edit of it"),
        ([Edit.steer(RESID, 1e39)], "finite numbers that float32 can hold"),
        ([Edit.steer(RESID, np.nan)], "finite numbers"),
        ([Edit.zero(Z, head=slice(None, None, 0))], "steps of 0"),
        ([Edit.zero("blocks.0.ln_1_scale", pos=1)], "divides by blocks.0.ln_1_scale, which cannot"),
        ([Edit.scale("*_scale", np.arange(9)[:, None])], "divides by blocks.0.ln_1_scale"),
    ],
)
def test_what_is_no_list_of_edits_is_refused_on_every_engine(runner, edits, words):
    with pytest.raises(EditError, match=words):
        runner.run(IDS, edits=edits)
    with pytest.raises(EditError, match=words):
        runner.run(IDS[:, :2], edits=edits, cache=runner.new_cache(2))


# No edit of a pattern lets a query see what comes later, or padding


PATTERNS = [Edit.steer(PATTERN, 0.1), Edit.replace(PATTERN, 0.3, head=1)]


@pytest.mark.parametrize("edit", PATTERNS, ids=["add", "replace"])
def test_an_edited_pattern_stays_causal(runner, edit):
    whole = runner.run(IDS, edits=[edit], taps=[PATTERN])
    close(runner.run(IDS[:, :4], edits=[edit]).logits, whole.logits[:, :4], 2e-4)
    assert not np.triu(whole.taps[PATTERN], 1).any()
    assert (whole.taps[PATTERN][:, 1][:, np.tri(9, dtype=bool)] >= 0.09).all()


@pytest.mark.parametrize("edit", PATTERNS, ids=["add", "replace"])
def test_an_edited_pattern_sees_no_padding_in_any_chunks(runner, torch_runner, edit):
    lengths, cache = np.array([5, 2]), runner.new_cache(2)
    run = runner.run(IDS[:, :5], lengths=lengths, cache=cache, edits=[edit])
    rows = [list(IDS[0, :5]), list(IDS[1, :2])]
    for part in (IDS[:, 5:8], IDS[:, 8:9]):
        run = runner.run(part, cache=run.cache, edits=[edit])
        rows = [row + list(new) for row, new in zip(rows, part, strict=True)]
    for row, ids in enumerate(rows):
        alone = torch_runner.run(ids, edits=[edit]).logits[0, -1]
        close(run.logits[row, -1], alone, 2e-4)
