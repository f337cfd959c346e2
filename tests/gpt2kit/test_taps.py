"""The table of taps, its globs, aliases and errors."""

import pytest

from gpt2kit.errors import InputError, TapError
from gpt2kit.taps import TapDict, axes_of, resolve, resolve_one, tap_axes


def test_the_table_is_complete_and_in_firing_order():
    block = "ln_1_scale q k v attn_scores pattern z head_out attn_out resid_mid"
    block += " ln_2_scale mlp_pre mlp_post mlp_out resid_post"
    names = ["embed", "pos_embed", "blocks.0.resid_pre"]
    for layer in range(2):
        names += [f"blocks.{layer}.{tap}" for tap in block.split()]
    assert list(tap_axes(2)) == [*names, "ln_f_scale", "ln_f"]


@pytest.mark.parametrize("name", tap_axes(2))
def test_every_tap_knows_its_axes_and_resolves_to_itself(name):
    assert axes_of(name) == tap_axes(2)[name]
    assert axes_of(name)[0] == "batch"
    assert resolve(name, 2) == (name,)


@pytest.mark.parametrize(
    ("pattern", "names"),
    [
        ("blocks.*.z", ["blocks.0.z", "blocks.1.z", "blocks.2.z"]),
        ("blocks.[02].z", ["blocks.0.z", "blocks.2.z"]),
        ("blocks.-1.z", ["blocks.2.z"]),
        ("blocks.-3.m*", ["blocks.0.mlp_pre", "blocks.0.mlp_post", "blocks.0.mlp_out"]),
        ("blocks.2.resid_pre", ["blocks.1.resid_post"]),
        ("blocks.-1.resid_pre", ["blocks.1.resid_post"]),
        (
            "blocks.*.resid_pre",
            ["blocks.0.resid_pre", "blocks.0.resid_post", "blocks.1.resid_post"],
        ),
        ("*embed", ["embed", "pos_embed"]),
        ("ln_f*", ["ln_f_scale", "ln_f"]),
        (["blocks.1.z", "embed", "blocks.-2.z"], ["embed", "blocks.1.z"]),
        ([], []),
        ("*", list(tap_axes(3))),
        # TransformerLens
        ("hook_embed", ["embed"]),
        ("hook_pos_embed", ["pos_embed"]),
        ("ln_final.hook_scale", ["ln_f_scale"]),
        ("ln_final.hook_normalized", ["ln_f"]),
        ("blocks.0.hook_resid_pre", ["blocks.0.resid_pre"]),
        ("blocks.2.hook_resid_pre", ["blocks.1.resid_post"]),
        ("blocks.2.hook_resid_mid", ["blocks.2.resid_mid"]),
        ("blocks.-1.hook_resid_post", ["blocks.2.resid_post"]),
        ("blocks.1.ln1.hook_scale", ["blocks.1.ln_1_scale"]),
        ("blocks.1.ln2.hook_scale", ["blocks.1.ln_2_scale"]),
        ("blocks.1.attn.hook_[qkv]", ["blocks.1.q", "blocks.1.k", "blocks.1.v"]),
        ("blocks.*.attn.hook_pattern", [f"blocks.{i}.pattern" for i in range(3)]),
        ("blocks.1.attn.hook_attn_scores", ["blocks.1.attn_scores"]),
        ("blocks.1.attn.hook_z", ["blocks.1.z"]),
        ("blocks.1.attn.hook_result", ["blocks.1.head_out"]),
        ("blocks.1.hook_attn_out", ["blocks.1.attn_out"]),
        ("blocks.1.mlp.hook_p*", ["blocks.1.mlp_pre", "blocks.1.mlp_post"]),
        ("blocks.1.hook_mlp_out", ["blocks.1.mlp_out"]),
    ],
    ids=str,
)
def test_patterns_select_canonical_taps_once_in_order(pattern, names):
    assert list(resolve(pattern, 3)) == names


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("blocks.0.patern", "did you mean 'blocks.0.pattern'?"),
        ("blocks.1.mlp.hook_psot", "did you mean 'blocks.1.mlp.hook_post'?"),
        ("blocks.3.z", "the model has layers 0 to 2"),
        ("blocks.-4.z", "the model has layers 0 to 2"),
        ("blocks.*.hook_mlp_in", "did you mean"),
        ("xyzzy", "see `gpt2kit taps`"),
        ("", "see `gpt2kit taps`"),
    ],
)
def test_a_pattern_that_selects_nothing_is_an_error_with_a_hint(name, hint):
    with pytest.raises(TapError) as caught:
        resolve(["embed", name], 3)
    assert repr(name) in str(caught.value)
    assert hint in str(caught.value)
    assert "\n" not in str(caught.value)
    assert isinstance(caught.value, InputError)


def test_one_tap_means_one():
    assert resolve_one("blocks.1.resid_*re", 3) == "blocks.0.resid_post"
    with pytest.raises(TapError, match=r"selects 3 taps \(blocks.0.z, …\); name one"):
        resolve_one("blocks.*.z", 3)


def test_a_tap_dict_finds_any_spelling_and_iterates_canonical_names():
    taps = TapDict({"blocks.0.resid_post": 1, "ln_f": 2}, n_layer=2)
    for name in ("blocks.0.resid_post", "blocks.1.resid_pre", "blocks.-2.hook_resid_post"):
        assert taps[name] == 1
        assert name in taps
    assert dict(taps) == {"blocks.0.resid_post": 1, "ln_f": 2}
    assert len(taps) == 2
    for name in ("embed", "nowhere", 3):
        assert name not in taps
    with pytest.raises(TapError, match=r"it holds: blocks.0.resid_post, ln_f"):
        taps["embed"]
    assert "ln_f" in repr(taps)


@pytest.mark.parametrize(
    "pattern",
    ["blocks.*.*[pos:2]", "blocks.1.z[head]", "blocks.1.z[9]", "blocks.*.z[-1]", "z[1,4]", "z[]"],
)
def test_brackets_that_look_like_a_place_are_refused(pattern):
    """Read as a glob, they would select other taps."""
    with pytest.raises(TapError, match=r"taps: '.*' names a place in a tap"):
        resolve(pattern, 3)


def test_an_error_names_the_argument_as_its_caller_calls_it():
    with pytest.raises(TapError, match="edits = 5 must be a tap's name or a list"):
        resolve(5, 3, argument="edits")
