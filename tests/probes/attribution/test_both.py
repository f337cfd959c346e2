"""What both attributions take, and how they look."""

import json
from dataclasses import replace

import numpy as np
import pytest
from rich.cells import cell_len
from rich.console import Console

from gpt2kit import TorchRunner
from gpt2kit.errors import InputError
from probes.attribution.direct import LEVELS, direct_logit_attribution
from probes.attribution.inputs import input_attribution
from probes.draw.words import format_number
from tests.conftest import CONFIG
from tests.probes.attribution.support import BOTH, PROMPT, id_of


@pytest.mark.parametrize("probe", BOTH)
def test_ids_and_bos_are_prompts_as_well(torch_runner, probe):
    ids = torch_runner.tokenizer.encode(PROMPT)
    bos = CONFIG.bos_token_id
    options = {"target": "a", "foil": "b", "position": 4}
    text = probe(torch_runner, PROMPT, prepend_bos=True, **options)
    given = probe(torch_runner, np.array([bos, *ids]), **options)
    assert text.prompt_ids.tolist() == given.prompt_ids.tolist() == [bos, *ids]
    assert (text.has_bos, given.has_bos) == (True, False)
    assert text.total == given.total
    assert text.prompt_tokens[0] == "<|endoftext|>"


@pytest.mark.parametrize("probe", BOTH)
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"target": "cat"}, r"'cat' is not one token: it is 'c' \+ 'a' \+ 't'"),
        ({"foil": ""}, "is not one token: it is nothing"),
        ({"foil": "a"}, "target and foil are both 'a', whose difference is always 0"),
        ({"position": 99}, "position 99 does not lie in the prompt, which has"),
        ({"position": -99}, "position -99 does not lie in the prompt"),
        ({"prompt": ""}, "the prompt is empty"),
        ({"prompt": []}, "has no tokens"),
        ({"prompt": [1, CONFIG.vocab_size]}, "outside the vocabulary"),
        ({"prompt": [[1, 2], [3, 4]]}, "a row of token ids, not int64 of shape \\(2, 2\\)"),
        ({"prompt": "x" * CONFIG.n_positions, "prepend_bos": True}, "do not fit the context of 40"),
    ],
)
def test_bad_arguments_are_refused(torch_runner, probe, options, message):
    with pytest.raises(InputError, match=message):
        probe(torch_runner, **{"prompt": PROMPT, "target": "a"} | options)


@pytest.mark.parametrize("probe", BOTH)
def test_token_ids_are_taken_like_texts(torch_runner, probe):
    texts = probe(torch_runner, PROMPT, target="a", foil="b")
    ids = probe(torch_runner, PROMPT, target=id_of("a"), foil=np.int64(id_of("b")))
    assert ids == texts
    assert ids != probe(torch_runner, PROMPT, target="a", foil="c")
    with pytest.raises(InputError, match=f"both {id_of('a')}, whose difference is always 0"):
        probe(torch_runner, PROMPT, target=id_of("a"), foil="a")
    nameless = probe(TorchRunner(torch_runner.model), [1, 2], target=5, foil=7)
    assert (nameless.target, nameless.foil, nameless.prompt_tokens) == ("5", "7", ("1", "2"))


WRONG_TYPES = [
    ({"target": None}, "target = None is neither a text nor a token id"),
    ({"target": 1.5}, "target = 1.5 is neither"),
    ({"foil": ["a"]}, r"foil = \['a'\] is neither a text nor a token id"),
    ({"foil": 1.5}, "foil = 1.5 is neither"),
    ({"position": 1.5}, "position 1.5 must be an integer, got float"),
    ({"position": None}, "position None must be an integer"),
    ({"prompt": None}, "a prompt is a text or a row of token ids, not object"),
    ({"prompt": 5}, "a prompt is a text or a row of token ids, not int64 of shape"),
    ({"prompt": [1.9]}, "a prompt is a text or a row of token ids, not float64"),
]


@pytest.mark.parametrize("probe", BOTH)
@pytest.mark.parametrize(("options", "message"), WRONG_TYPES)
def test_wrong_types_are_refused_by_the_arguments_name(torch_runner, probe, options, message):
    with pytest.raises(InputError, match=message) as caught:
        probe(torch_runner, **{"prompt": PROMPT, "target": "a"} | options)
    assert "\n" not in str(caught.value)


def test_levels_methods_and_steps_of_a_wrong_type_are_refused(torch_runner):
    with pytest.raises(InputError, match="by = 3 is not one of component"):
        direct_logit_attribution(torch_runner, PROMPT, target="a", by=3)
    with pytest.raises(InputError, match="method = None is not one of"):
        input_attribution(torch_runner, PROMPT, target="a", method=None)
    with pytest.raises(InputError, match=r"steps = 1.5 must be an integer, got float"):
        input_attribution(torch_runner, PROMPT, target="a", steps=1.5)


def test_unknown_levels_methods_and_steps_are_refused(torch_runner):
    with pytest.raises(InputError, match="by = 'layer' is not one of component, head, neuron"):
        direct_logit_attribution(torch_runner, PROMPT, target="a", by="layer")
    with pytest.raises(InputError, match="method = 'shap' is not one of gradient_x_input"):
        input_attribution(torch_runner, PROMPT, target="a", method="shap")
    with pytest.raises(InputError, match="steps = 0 must be at least 1"):
        input_attribution(torch_runner, PROMPT, target="a", steps=0)


@pytest.mark.parametrize("probe", BOTH)
def test_a_runner_without_tokenizer_or_bos_is_refused(torch_runner, probe):
    with pytest.raises(InputError, match="no tokenizer"):
        probe(TorchRunner(torch_runner.model), [1, 2], target="a")
    nameless = TorchRunner(torch_runner.model, torch_runner.tokenizer)
    nameless.config = replace(CONFIG, bos_token_id=None)
    with pytest.raises(InputError, match="no BOS token in its config"):
        probe(nameless, PROMPT, target="a", prepend_bos=True)


def drawn(result, width: int) -> str:
    console = Console(width=width, color_system=None)
    with console.capture() as capture:
        console.print(result.render())
    return capture.get()


@pytest.mark.parametrize("width", [40, 80, 200])
@pytest.mark.parametrize("by", LEVELS)
def test_parts_fit_the_terminal_and_all_heads_are_there(torch_runner, width, by):
    found = direct_logit_attribution(torch_runner, PROMPT, target="a", foil="b", by=by)
    text = drawn(found, width)
    assert all(cell_len(line) <= width for line in text.split("\n"))
    grid = text[text.index("\nlayer") :]
    for kind in ("head", "mlp") if by == "head" else ():
        assert all(format_number(value) in grid for value in found.values[kind].ravel())
    assert grid.count("mlp") == 1


def test_the_table_holds_the_strongest_parts_with_their_sign(torch_runner):
    found = direct_logit_attribution(torch_runner, PROMPT, target="a", by="head")
    text = str(found)
    order = np.argsort(found.parts)
    top, bottom = int(order[-1]), int(order[0])
    row = text.split("\n")[4].split()
    assert " ".join(row) == (
        f"{found.names[top]} {found.parts[top]:+.3f} "
        f"{found.names[bottom]} {found.parts[bottom]:+.3f}"
    )
    assert "logit of 'a' = " in text
    assert f"the strongest of {len(found.parts)} parts" in text


def test_tokens_are_shown_as_they_are(torch_runner):
    found = input_attribution(torch_runner, PROMPT, target="a")
    text = drawn(found, 60)
    assert all(cell_len(line) <= 60 for line in text.split("\n"))
    lines = [line.split() for line in text.split("\n") if "'" in line and "█" in line]
    assert max(found.values, key=abs) == pytest.approx(
        float(next(line for line in lines if "█" * 24 in line)[-2]), abs=6e-4
    )
    odd = ("[b]", "\n", "日本語", "\u202e", "\x1b[31m", "x" * 200)
    odd += found.prompt_tokens[len(odd) :]
    text = drawn(replace(found, prompt_tokens=odd), 60)
    assert all(cell_len(line) <= 60 for line in text.split("\n"))
    assert all(sign in text for sign in ("'[b]'", "'⏎'", "'日本語'"))
    assert not set(text) & set("\u202e\x1b")
    assert "zero token embeddings" in " ".join(text.split())


def test_a_long_prompt_shows_its_strongest_tokens(bundled):
    found = input_attribution(bundled, " the ball" * 25, target=" and", method="gradient_x_input")
    weakest = int(np.abs(found.values).argmin())
    text = drawn(found, 120)
    assert "the 10 weakest tokens are not shown" in text
    shown = [int(line.split()[0]) for line in text.split("\n")[5:] if line.strip()]
    assert len(shown) == 40
    assert shown == sorted(shown)
    assert weakest not in shown


@pytest.mark.parametrize("probe", BOTH)
def test_json_html_and_repr(torch_runner, probe):
    found = probe(torch_runner, PROMPT, target="a", foil="b")
    read = json.loads(found.to_json())
    assert read["total"] == found.total
    assert read["prompt_ids"] == found.prompt_ids.tolist()
    want = found.values["mlp"] if isinstance(found.values, dict) else found.values
    got = read["values"]["mlp"] if isinstance(found.values, dict) else read["values"]
    assert got == want.tolist()
    assert repr(found).startswith(f"{type(found).__name__}(random, logit of 'a' minus logit of")
    assert "\n" not in repr(found)
    assert found._repr_html_().startswith("<pre")
