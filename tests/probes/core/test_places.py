"""Which places a sweep tries, and which layer each tap belongs to."""

import pytest

from gpt2kit.errors import InputError, TapError
from probes.core.places import Places, layer_of, slices_of, swept_taps

SIZES = {"head": 3, "position": 4}


def test_a_tap_with_heads_is_tried_head_by_head_and_others_by_position():
    heads = Places.of("blocks.0.z", SIZES, each_position=True)
    assert heads.each == ({"head": 0}, {"head": 1}, {"head": 2})
    assert (heads.axes, heads.shape) == (("layer", "head"), (3,))
    stream = Places.of("blocks.0.resid_post", SIZES, each_position=True)
    assert stream.each == tuple({"pos": i} for i in range(4))
    whole = Places.of("embed", SIZES, each_position=False)
    assert (whole.each, whole.axes, whole.shape) == (({},), ("tap",), ())


def test_places_of_a_pattern_name_its_queries_and_keys():
    chosen = Places.of("blocks.0.pattern", SIZES, [1], [-1], [0, 2], each_position=True)
    assert chosen.each == tuple({"head": 1, "query": 3, "key": key} for key in (0, 2))
    assert slices_of(chosen.each[1], "blocks.0.pattern") == (1, 3, 2)
    assert slices_of({"pos": 2}, "blocks.0.z") == (2, slice(None), slice(None))
    with pytest.raises(InputError, match="has no keys to choose from"):
        Places.of("blocks.0.z", SIZES, keys=[0], each_position=True)


@pytest.mark.parametrize(
    ("tap", "layer"),
    [
        ("embed", -1),
        ("pos_embed", -1),
        ("blocks.0.resid_pre", 0),
        ("blocks.1.z", 1),
        ("blocks.1.resid_post", 2),
        ("blocks.2.resid_post", 3),
        ("ln_f", 3),
        ("ln_f_scale", 3),
    ],
)
def test_the_first_layer_that_an_edit_changes(tap, layer):
    assert layer_of(tap, 3) == layer


def test_a_sweep_goes_over_every_layer_or_one_tap_outside():
    assert swept_taps("z", 2) == ("blocks.0.z", "blocks.1.z")
    assert swept_taps("embed", 2) == ("embed",)
    assert swept_taps("resid_pre", 2) == ("blocks.0.resid_pre", "blocks.0.resid_post")
    with pytest.raises(TapError, match="name 'z' alone"):
        swept_taps("blocks.0.z", 2)
