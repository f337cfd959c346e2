"""Edits as text: how they are read, and the errors for text that is not an edit."""

from dataclasses import replace

import numpy as np
import pytest

from gpt2kit import Edit
from gpt2kit.errors import EditError, TapError
from tests.conftest import close, random_ids

IDS = random_ids(2, 6)
VECTOR = np.random.default_rng(0).standard_normal(24)


@pytest.fixture(autouse=True)
def files(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    np.save("direction.npy", VECTOR)
    np.save("a b.npy", VECTOR)
    np.save("words.npy", np.array(["a"]))
    np.save("nan.npy", np.array([np.nan]))
    np.save("objects.npy", np.array([None]), allow_pickle=True)
    (tmp_path / "text.npy").write_text("not an array")


SAME = {
    "blocks.1.z[head=2] = 0": Edit.zero("blocks.1.z", head=2),
    "blocks.1.z[head=2]=0": Edit.zero("blocks.1.z", head=2),
    "  blocks.1.z [ head = 2 , pos = 1:3 ]  =  0 ": Edit.zero(
        "blocks.1.z", head=2, pos=slice(1, 3)
    ),
    "blocks.1.pattern[head=1] *= 0": Edit.scale("blocks.1.pattern", 0, head=1),
    "blocks.1.pattern[head=1, query=[2,4], key=:2] *= .5": Edit.scale(
        "blocks.1.pattern", 0.5, head=1, query=[2, 4], key=slice(None, 2)
    ),
    "blocks.1.resid_post += 8 * direction.npy": Edit.steer("blocks.1.resid_post", VECTOR, 8),
    "blocks.1.resid_post+=direction.npy": Edit.steer("blocks.1.resid_post", VECTOR),
    "blocks.1.resid_post -= 1e-1*direction.npy": Edit.steer("blocks.1.resid_post", VECTOR, -0.1),
    "blocks.1.mlp_post[pos=-1] += -3": Edit.steer("blocks.1.mlp_post", -3, pos=-1),
    "blocks.1.resid_post += -direction.npy": Edit.steer("blocks.1.resid_post", VECTOR, -1),
    "blocks.*.mlp_out = a b.npy": Edit.replace("blocks.*.mlp_out", VECTOR),
    "blocks.[01].resid_mid *= 2.": Edit.scale("blocks.[01].resid_mid", 2),
    "blocks.[01].q[pos=3:] *= 2": Edit.scale("blocks.[01].q", 2, pos=slice(3, None)),
    "blocks.-1.hook_resid_mid *= 1.5": Edit.scale("blocks.2.resid_mid", 1.5),
    "*_scale *= 2": Edit.scale("*_scale", 2),
}  # fmt: skip


@pytest.mark.parametrize("text", SAME)
def test_text_means_that_edit(torch_runner, text):
    read = Edit.parse(text)
    want = torch_runner.run(IDS, edits=[SAME[text]], taps="*")
    got = torch_runner.run(IDS, edits=[read], taps="*")
    close(got.logits, want.logits)
    assert np.abs(torch_runner.run(IDS).logits - want.logits).max() > 1e-3


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "is not an edit; write TAP = VALUE"),
        ("blocks.1.z", "is not an edit"),
        ("= 0", "is not an edit"),
        ("blocks.1.z =", "is not an edit"),
        ("blocks.1.z == 0", "is not an edit"),
        ("blocks.1.z /= 2", r"is not an edit; .* or TAP \*= VALUE"),
        ("blocks.1.z[] = 0", "is not an edit"),
        ("blocks.1.z[head=1_0] = 0", "'1_0' is not an index"),
        ("blocks.1.z[head=::0] = 0", "'::0' selects nothing"),
        ("blocks.1.z[head=3:1] = 0", "'3:1' selects nothing"),
        ("blocks.1.z = 1e39", "finite numbers that float32 can hold"),
        ("blocks.1.mlp_out = 999999999999999999999999999999999999999 * direction.npy", "finite"),
        ("blocks.1.z[head] = 0", r"'blocks.1.z\[head\]' has brackets without an axis; write"),
        ("blocks.*.*[pos:2] += 5", r"'blocks.\*.\*\[pos:2\]' has brackets without an axis"),
        ("blocks.*.*[2] += 5", "has brackets without an axis"),
        ("blocks.1.[qk] *= 0", "has brackets without an axis"),
        ("blocks.1.mlp_[po]* *= 0", "has brackets without an axis"),
        ("[pos:2] = 0", "has brackets without an axis"),
        ("blocks.1.z[head=2 = 0", "is not an edit"),
        ("blocks.1.z] = 0", "is not an edit"),
        ("blocks.1.z[head=2][pos:1] = 0", "is not an edit"),
        ("blocks.1.z[head=\u0661] = 0", "is not an index"),
        ("blocks.1.z[pos=:\u0662] = 0", "is not an index"),
        ("blocks.1.z[pos=[\u0661]] = 0", "is not an index"),
        ("blocks.1.z *= \u0662", "is neither a number nor a .npy file"),
        ("blocks.1.z *= \uff12", "is neither a number nor a .npy file"),
        ("blocks.1.mlp_out += \u0668 * direction.npy", "there is no file"),
        ("blocks.\u0661.z = 0", "unknown tap"),
        ("blocks.[\u0661].z = 0", "has brackets without an axis"),
        ("blocks.1.z[head=1]", "is not an edit; write TAP = VALUE"),
        ("blocks.1.z[head=] = 0", r"\[head=\] does not say where; write \[head=9\]"),
        ("blocks.1.z[head=1,head=2] = 0", "each once"),
        ("blocks.1.z[head=a] = 0", "'a' is not an index"),
        ("blocks.1.z[head=[1,x]] = 0", "is not an index"),
        ("blocks.1.z[pos=1:2:3:4] = 0", "is not an index"),
        ("blocks.1.z = 1e999", "1e999 is too large"),
        ("blocks.1.z = direction", "'direction' is neither a number nor a .npy file"),
        ("blocks.1.z = 2 * 3", "'3' is neither a number nor a .npy file"),
        ("blocks.1.z = none.npy", "there is no file none.npy"),
        ("blocks.1.z = text.npy", "text.npy is not an array that numpy can load"),
        ("blocks.1.z = objects.npy", "objects.npy is not an array that numpy can load"),
        ("blocks.1.z = words.npy", "words.npy must hold finite numbers"),
        ("blocks.1.z = nan.npy", "nan.npy must hold finite numbers"),
        ("blocks.1.z[nose=3] = 0", "blocks.1.z has no axis 'nose'"),
        ("blocks.1.z[head=3] = 0", "head = 3 is out of range"),
        ("blocks.9.z = 0", "the model has layers 0 to 2"),
        ("blocks.1.z += direction.npy", "does not broadcast"),
        ("blocks.1.z[head=1.5] = 0", "'1.5' is not an index"),
        ("ln_f_scale = 0", "a layer norm divides by ln_f_scale, which cannot be 0"),
    ],
)
def test_text_that_is_no_edit_says_why_in_one_line(torch_runner, text, words):
    with pytest.raises((EditError, ValueError), match=words) as caught:
        torch_runner.run(IDS, edits=[Edit.parse(text)])
    assert "\n" not in str(caught.value)
    if not isinstance(caught.value, TapError):  # which names the tap alone
        assert str(caught.value).startswith(f"{text!r}")


def test_a_changed_copy_of_a_parsed_edit_is_no_longer_its_text(torch_runner):
    edit = Edit.parse("blocks.1.z[head=3] = 0")
    assert edit.text == "blocks.1.z[head=3] = 0"
    changed = replace(edit, keep=2.0)
    assert changed.text == ""
    with pytest.raises(EditError, match=r"^Edit\('blocks.1.z', keep=2.0, add=0.0, head=3\): head"):
        torch_runner.run(IDS, edits=[changed])
