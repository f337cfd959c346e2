"""Edits inside exported graphs equal torch's: every tap, every kind, in batches and with a cache.
Also, what it costs a graph that it can be edited."""

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from exporters import export_onnx, open_onnx
from exporters.file.names import LOGITS_POSITIONS, edit_names
from gpt2kit import Edit, generate
from gpt2kit.errors import EditError, ExportError
from gpt2kit.taps import axes_of
from tests.conftest import CONFIG, close, random_ids
from tests.gpt2kit.test_edits import (
    CACHED_EDITS,
    IDS,
    KINDS,
    MEAN,
    RESID,
    TAPS,
    VECTOR,
    Z,
    in_chunks,
    rng,
    same_taps,
    shape_of,
)  # fmt: skip

GIVEN = {kind: edits for kind, edits in CACHED_EDITS.items() if kind != "a function"}
TOLERANCE = 2e-4  # values reach 20, and float32 sums run in another order


@pytest.fixture(params=["onnx", "fused"])
def engine(request):
    return request.getfixturevalue(f"{request.param}_runner")


def same(engine, torch_runner, edits, ids=IDS, **options) -> None:
    """Compare logits and every tap, with these edits, on both engines."""
    got, want = (r.run(ids, edits=edits, taps="*", **options) for r in (engine, torch_runner))
    close(got.logits, want.logits, TOLERANCE)
    for name in TAPS:
        same_taps(name, got.taps[name], want.taps[name], TOLERANCE)


@pytest.mark.parametrize("tap", TAPS)
def test_an_edit_of_any_tap_equals_torch(engine, torch_runner, tap):
    keep, add = rng(*shape_of(tap)) + 1.5, rng(*shape_of(tap), seed=1) * 0.1
    same(engine, torch_runner, [Edit(tap, keep, add)])


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_edit_equals_torch(engine, torch_runner, kind):
    same(engine, torch_runner, [KINDS[kind][0]])


@pytest.mark.parametrize("kind", GIVEN)
@pytest.mark.parametrize("sizes", [[4, 5], [1] * 9, [6, 1, 2]], ids=str)
def test_edits_stay_at_their_positions_through_the_cache(engine, torch_runner, kind, sizes):
    edits = GIVEN[kind]
    want = torch_runner.run(IDS, edits=edits, taps="*")
    logits, taps = in_chunks(engine, IDS, sizes, edits=edits)
    close(logits, want.logits, TOLERANCE)
    for name in TAPS:
        same_taps(name, taps[name], want.taps[name], TOLERANCE)


@pytest.mark.parametrize("kind", GIVEN)
def test_rows_of_unequal_length_are_edited_as_on_torch(engine, torch_runner, kind):
    """A ragged prompt, whose padding leaves gaps in a portable cache, then decode steps."""
    edits, sizes = GIVEN[kind], np.array([5, 2])
    caches = [runner.new_cache(2) for runner in (engine, torch_runner)]
    chunks = [(IDS[:, :5], sizes), *((IDS[:, i : i + 1], None) for i in range(5, 9))]
    for ids, lengths in chunks:
        runs = [
            r.run(ids, lengths=lengths, cache=cache, edits=edits, taps=["blocks.2.*"])
            for r, cache in zip((engine, torch_runner), caches, strict=True)
        ]
        caches = [run.cache for run in runs]
        for row, n in enumerate(sizes if lengths is not None else [1, 1]):
            close(*(run.logits[row, :n] for run in runs), TOLERANCE)
            close(*(run.taps["blocks.2.z"][row, :n] for run in runs), TOLERANCE)
            close(*(run.taps["blocks.2.pattern"][row, :, :n] for run in runs), TOLERANCE)


@given(st.data())
@settings(deadline=None, max_examples=25)
def test_any_taps_and_edits_in_any_ragged_chunks_equal_torch(engine_and_torch, data):
    batch = data.draw(st.integers(1, 3))
    edits = []
    for tap in data.draw(st.lists(st.sampled_from(TAPS), max_size=4)):
        kinds = [Edit.scale(tap, 0.5), Edit(tap, 1.2, 0.1)]
        if axes_of(tap)[-1] != "key":
            kinds.append(Edit.steer(tap, rng(shape_of(tap)[-1], seed=3) * 0.2))
        edits.append(data.draw(st.sampled_from(kinds)))
    taps = data.draw(st.lists(st.sampled_from(TAPS), max_size=4))
    caches = [runner.new_cache(batch) for runner in engine_and_torch]
    for size in data.draw(st.lists(st.integers(1, 5), min_size=1, max_size=4)):
        ids = random_ids(batch, size, seed=size)
        lengths = np.array([data.draw(st.integers(1, size)) for _ in range(batch)])
        runs = [
            runner.run(ids, edits=edits, taps=taps, cache=cache, lengths=lengths)
            for runner, cache in zip(engine_and_torch, caches, strict=True)
        ]
        caches = [run.cache for run in runs]
        for row, n in enumerate(lengths):
            close(*(run.logits[row, :n] for run in runs), 1e-3)
            for name in runs[0].taps:
                close(
                    *(_valid(run.taps[name][row], name, n, caches[0].lengths[row]) for run in runs),
                    1e-3,
                )


def _valid(x, name, n, end):
    """One row of a tap: its own tokens, and no keys later than the query."""
    if axes_of(name)[-1] != "key":
        return x[:n]
    return np.where(np.tri(n, end, end - n, dtype=bool), x[:, :n, :end], 0)


@pytest.fixture(params=["onnx", "fused"], scope="module")
def engine_and_torch(request, torch_runner):
    return request.getfixturevalue(f"{request.param}_runner"), torch_runner


def test_rows_of_a_batch_take_edits_of_their_own(engine):
    edits = [Edit.zero(Z, head=0), Edit.steer(RESID, VECTOR, pos=4), Edit.replace(RESID, MEAN[0])]
    batched = [Edit(e.tap, e.keep, e.add, {**e.at, "batch": i}) for i, e in enumerate(edits)]
    run = engine.run(IDS[:1].repeat(3, 0), edits=batched)
    for i, edit in enumerate(edits):
        close(run.logits[i], engine.run(IDS[:1], edits=[edit]).logits[0], TOLERANCE)


def test_generation_with_edits_equals_torch_and_leaves_no_trace(engine, torch_runner):
    steer = [Edit.steer("blocks.0.resid_post", 4 * VECTOR), Edit.zero("blocks.2.z", head=1)]
    options = {"greedy": True, "max_new_tokens": 12}
    runners = (engine, torch_runner)
    edited = [generate(runner, "the the ", edits=steer, **options) for runner in runners]
    plain = [generate(runner, "the the ", **options) for runner in runners]
    assert edited[0] == edited[1]
    assert plain[0] == plain[1] != edited[0]


def test_a_decode_step_goes_back_to_no_edit(fused_runner):
    """The step's inputs stay bound from one run to the next."""
    edit = [Edit.zero("blocks.1.mlp_out")]
    state = fused_runner.run([1, 2, 3], cache=fused_runner.new_cache(1), last_only=True)
    kept = state.cache.copy()
    plain = fused_runner.run([4], cache=state.cache.copy()).logits
    first = fused_runner.run([4], cache=state.cache, edits=edit)
    assert np.abs(first.logits - plain).max() > 0.01
    again = fused_runner.run([5], cache=first.cache)
    by_hand = fused_runner.run([4], cache=kept, edits=edit)
    fresh = fused_runner.run([5], cache=by_hand.cache.copy())
    close(again.logits, fresh.logits)


def test_steps_between_edits_read_what_changes_nothing_at_the_same_place(fused_runner, monkeypatch):
    """A CUDA graph captured in an unedited step reads the identity edits at a fixed address."""
    bound, plain = {}, ort.IOBinding.bind_ortvalue_input
    monkeypatch.setattr(
        ort.IOBinding,
        "bind_ortvalue_input",
        lambda self, name, value: bound.update({name: value}) or plain(self, name, value),
    )
    names = [f"{tap}.{part}" for tap in (Z, RESID) for part in ("keep", "add")]
    step, found = fused_runner.run([1], cache=fused_runner.new_cache(1)), []
    for edit in (Edit.zero(Z, head=1), Edit.steer(RESID, VECTOR), Edit.zero(Z, head=0)):
        step = fused_runner.run([2], cache=step.cache, edits=[edit])
        step = fused_runner.run([3], cache=step.cache)
        found.append([bound.get(name) for name in names])  # held, so that no place is given twice
    assert None not in found[1]
    assert all(one is other for one, other in zip(found[0][:2], found[1], strict=False))
    assert all(one is other for one, other in zip(found[1], found[2], strict=True))


# The cost of inputs for edits that are not used


def test_without_edits_a_file_computes_what_it_would_without_inputs_for_them(engine, file_of):
    plain = open_onnx(file_of(engine.profile), device="cpu")
    assert plain.edits == ()
    close(engine.run(IDS).logits, plain.run(IDS).logits, 1e-4)


@pytest.fixture(scope="module")
def fused_files(file_of):
    """Fused files without taps and edits, with residual taps, and with residual edits."""
    given = {"plain": {}, "taps": {"taps": "*.resid_*"}, "edits": {"edits": "*.resid_*"}}
    return {name: file_of("fused", **options) for name, options in given.items()}


def operators(path) -> dict[str, int]:
    kinds = [node.op_type for node in onnx.load(path).graph.node]
    return {kind: kinds.count(kind) for kind in sorted(set(kinds))}


def test_a_residual_tap_costs_no_operator_and_an_edit_two(fused_files):
    plain, taps, edits = (operators(fused_files[name]) for name in ("plain", "taps", "edits"))
    assert taps == plain
    count = 1 + 2 * CONFIG.n_layer
    assert edits == plain | {"Mul": plain.get("Mul", 0) + count, "Add": plain["Add"] + count}


def test_scores_that_are_only_read_leave_the_fused_operator_in_charge(torch_runner, tmp_path):
    path = tmp_path / "x.onnx"
    export_onnx(torch_runner, path, profile="fused", taps="blocks.1.pattern")
    graph = onnx.load(path).graph
    made_by = {name: node for node in graph.node for name in node.output}
    reads = {i for node in graph.node if node.op_type == "Gemm" for i in node.input}
    seen, todo = set(), list(reads)
    while todo:  # what the logits depend on
        name = todo.pop()
        if name in made_by and name not in seen:
            seen.add(name)
            todo += made_by[name].input
    used = [made_by[name].op_type for name in seen]
    assert used.count("GroupQueryAttention") == CONFIG.n_layer
    assert "Softmax" not in used
    assert sum(node.op_type == "Softmax" for node in graph.node) == 1


def test_inputs_of_edits_are_optional(engine):
    """A client that does not know these inputs can run the file."""
    session = ort.InferenceSession(engine.path)
    names = {value.name for value in session.get_inputs()}
    assert not any(name.endswith((".keep", ".add")) for name in names)
    optional = {value.name: value for value in session.get_overridable_initializers()}
    edits = {name for tap in engine.edits for name in edit_names(tap)}
    assert optional.keys() - {LOGITS_POSITIONS} == edits
    value = optional["blocks.1.z.keep"]
    assert value.shape == [f"blocks.1.z.keep.{axis}" for axis in axes_of("blocks.1.z")]


# Edits that are refused


def test_an_edit_that_a_file_cannot_take_says_how_to_export_it(fused_files):
    plain, some = (open_onnx(fused_files[name], device="cpu") for name in ("plain", "edits"))
    with pytest.raises(
        EditError, match=r"no edit of 'blocks\.0\.z'; export .* --edits 'blocks\.0\.z'`$"
    ):
        some.run([1], edits=[Edit.zero("blocks.0.z")])
    with pytest.raises(EditError, match=r"\(and 2 more\); .* --edits 'blocks\.\*\.mlp_out'`$"):
        plain.run([1], edits=[Edit.zero("blocks.*.mlp_out")])
    with pytest.raises(EditError, match="is not an Edit; functions run on the torch engine"):
        some.run([1], edits=[("blocks.0.resid_mid", lambda x: x)])
    with pytest.raises(EditError, match="does not broadcast"):
        some.run([1], edits=[Edit.steer("blocks.0.resid_mid", np.ones(5))])


def test_a_quantised_file_has_no_heads_one_by_one(torch_runner, tmp_path):
    with pytest.raises(ExportError, match=r"has no blocks\.0\.head_out"):
        export_onnx(torch_runner, tmp_path / "x.onnx", edits="*.head_out", quantize="int8")


@pytest.mark.cuda
@pytest.mark.parametrize("profile", ["portable", "fused"])
def test_taps_and_edits_on_cuda_equal_torch(torch_runner, tmp_path, profile):
    """In float16, since a fused file has no float32 on CUDA; edited steps and others in turn."""
    path, edit = tmp_path / "x.onnx", [Edit.zero("blocks.1.z", head=0)]
    export_onnx(torch_runner, path, profile=profile, dtype="float16", taps="*", edits="*")
    runner = open_onnx(path, device="cuda")
    run = runner.run(IDS, edits=edit, taps="*")
    want = torch_runner.run(IDS, edits=edit, taps="*")
    close(run.taps["blocks.2.resid_post"], want.taps["blocks.2.resid_post"], 0.1)
    for turns in ([(), edit, (), edit, ()], [edit, (), edit, (), edit, ()]):
        caches = [runner.new_cache(2), torch_runner.new_cache(2)]
        for column, edits in enumerate(turns):  # what was captured is replayed after edits, too
            ids = IDS[:, column : column + 1]
            got, wanted = (
                engine.run(ids, cache=cache, edits=edits)
                for engine, cache in zip((runner, torch_runner), caches, strict=True)
            )
            close(got.logits, wanted.logits, 0.1)
            caches = [got.cache, wanted.cache]
