"""The contract of results: saved and read back equal, whatever their fields hold."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import numpy as np
import pytest
from numpy.typing import NDArray

from gpt2kit.errors import InputError
from gpt2kit.readout import Floats, Ints
from gpt2kit.result import ModelResult, PromptResult, Result, Row, array_rows, prompt_header

NAN, INF = float("nan"), float("inf")


@dataclass(frozen=True)
class Part:
    name: str
    values: Floats


@dataclass(frozen=True)
class Whole:
    part: Part
    parts: tuple[Part, ...]


@dataclass(frozen=True, eq=False)
class Everything(Result):
    number: float = 0.5
    count: int = 3
    flag: bool = True
    text: str = "é\n👍"
    maybe: float | None = None
    perhaps: int | None = None
    floats: Floats = field(default_factory=lambda: np.array([[1.5, -2.0]], np.float32))
    ints: Ints = field(default_factory=lambda: np.arange(6).reshape(2, 3))
    flags: NDArray[np.bool_] = field(default_factory=lambda: np.array([True, False]))
    optional: Floats | None = None
    pairs: tuple[tuple[int, float], ...] = ((1, 0.5), (2, NAN))
    pair: tuple[str, int] = ("a", 1)
    names: list[str] = field(default_factory=list)
    by_name: dict[str, Floats] = field(default_factory=dict)
    counts: Mapping[int, int] = field(default_factory=dict)
    whole: Whole | None = None

    def table(self) -> list[Row]:
        return array_rows({"n": self.ints}, ("row", "column"))


CASES = {
    "defaults": {},
    "nan": {"number": NAN, "floats": np.array([NAN, 1.0])},
    "infinities": {"number": -INF, "floats": np.array([INF, -INF, NAN])},
    "optional numbers": {"maybe": 1.5, "perhaps": 4},
    "an infinite optional number": {"maybe": -INF},
    "empty": {"floats": np.zeros(0), "ints": np.zeros(0, np.int64)},
    "empty rows": {"floats": np.zeros((2, 0)), "ints": np.zeros((2, 0), np.int64)},
    "no rows": {"floats": np.zeros((0, 3)), "ints": np.zeros((0, 3, 2), np.int64)},
    "no rows of nothing": {"floats": np.zeros((0, 0)), "flags": np.zeros((3, 0, 2), bool)},
    "no dimensions": {"floats": np.array(2.5), "ints": np.array(7)},
    "float64": {"floats": np.array([1 / 3, 1e300, 5e-324])},
    "float16": {"floats": np.array([0.1, 3], np.float16)},
    "large integers": {"ints": np.array([2**62, -1])},
    "flags": {"flags": np.array([[True], [False]])},
    "an optional array": {"optional": np.array([NAN, 2])},
    "an empty optional array": {"optional": np.zeros((0, 4))},
    "tuples": {"pairs": (), "pair": ("b", 2), "names": ["x", "y"]},
    "mappings": {"by_name": {"z": np.ones((1, 2)), "q": np.zeros((0, 2))}, "counts": {3: 4}},
    "nested": {"whole": Whole(Part("a", np.ones(2)), (Part("b", np.zeros((0, 2))),))},
    "numpy scalars": {"number": np.float32(0.5), "count": np.int64(2), "flag": np.bool_(False)},
}


@pytest.mark.parametrize("case", CASES)
def test_what_is_saved_is_read_back_equal(case):
    saved = Everything(**CASES[case])
    for read in (Everything.from_json(saved.to_json()), Everything.from_dict(saved.to_dict())):
        assert read == saved
        assert hash(read) == hash(saved)
        for name, value in CASES[case].items():
            if isinstance(value, np.ndarray):
                assert getattr(read, name).shape == value.shape, name
                assert getattr(read, name).dtype.kind == value.dtype.kind, name
    assert Everything.from_json(read.to_json()).to_json() == saved.to_json()


def test_saved_data_is_plain_json_with_a_header():
    saved = Everything(number=NAN, floats=np.array([INF, NAN]))
    data = json.loads(saved.to_json(), parse_constant=lambda name: pytest.fail(name))
    assert list(data)[:2] == ["kind", "schema_version"]
    assert data["kind"] == "everything"
    assert data["number"] is None
    assert data == saved.to_dict()


@pytest.mark.parametrize(
    ("change", "value"),
    [
        ("number", 0.6),
        ("number", NAN),
        ("floats", np.array([[1.5, -2.5]], np.float32)),
        ("floats", np.array([1.5, -2.0], np.float32)),
        ("ints", np.zeros((2, 0), np.int64)),
        ("optional", np.zeros(1)),
        ("pairs", ((1, 0.5),)),
        ("by_name", {"z": np.ones(1)}),
        ("whole", Whole(Part("a", np.ones(2)), ())),
    ],
    ids=str,
)
def test_results_of_other_content_are_not_equal(change, value):
    assert replace(Everything(), **{change: value}) != Everything()
    assert Everything() != 5


def spoil(**change):
    return json.dumps(json.loads(Everything().to_json()) | change)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("{", "everything: not JSON"),
        ("", "everything: not JSON"),
        ("[]", "must be a JSON object"),
        ("5", "must be a JSON object"),
        (None, "everything: not JSON"),
        (5, "everything: not JSON"),
        ("{}", "saved data of kind None given, 'everything' is needed"),
        (spoil(kind="logit lens"), "saved data of kind 'logit lens' given"),
        (spoil(schema_version=2), "schema version 2 is unknown.*update gpt2kit"),
        (spoil(schema_version="new"), "schema version 'new' is unknown"),
        (spoil(schema_version=None), "schema version None is unknown"),
        (spoil(schema_version=True), "schema version True is unknown"),
        (spoil(schema_version=0), "schema version 0 is unknown"),
        (spoil(number="much"), "saved number cannot be read"),
        (spoil(number=[1]), "saved number cannot be read"),
        (spoil(count="3"), "saved count cannot be read"),
        (spoil(count=1.5), "saved count cannot be read"),
        (spoil(count=None), "saved count cannot be read"),
        (spoil(flag=1), "saved flag cannot be read"),
        (spoil(text=5), "saved text cannot be read"),
        (spoil(perhaps="many"), "saved perhaps cannot be read"),
        (spoil(floats="many"), "saved floats cannot be read"),
        (spoil(floats=[[1], [1, 2]]), "saved floats cannot be read"),
        (spoil(ints=[1.5]), "saved ints cannot be read"),
        (spoil(ints=["1"]), "saved ints cannot be read"),
        (spoil(flags=[2]), "saved flags cannot be read"),
        (spoil(pairs=[[1, 2, 3]]), "saved pairs cannot be read"),
        (spoil(pairs=5), "saved pairs cannot be read"),
        (spoil(names="abc"), "saved names cannot be read"),
        (spoil(by_name=[1]), "saved by_name cannot be read"),
        (spoil(whole={"part": {"name": "a"}, "parts": []}), "no values"),
        (spoil(whole=[]), "Whole: an object is needed, got list"),
    ],
)
def test_what_cannot_be_read_is_told_in_one_line(text, words):
    with pytest.raises(InputError, match=words) as caught:
        Everything.from_json(text)
    assert "\n" not in str(caught.value)


@dataclass(frozen=True, eq=False)
class Bare(ModelResult):
    score: float


def test_a_missing_field_is_told():
    data = Bare(score=1.0, source="bundled", dtype="float32").to_dict()
    del data["score"]
    with pytest.raises(InputError, match="saved data has no score"):
        Bare.from_dict(data)
    data |= {"score": 1.0, "added_later": 5}
    assert Bare.from_dict(data).score == 1.0


@dataclass(frozen=True, eq=False)
class OfPrompt(PromptResult):
    score: float


def test_headers_are_filled_in_one_place(torch_runner):
    result = OfPrompt(score=1.0, **prompt_header(torch_runner, np.array([5, 6])))
    assert (result.source, result.dtype, result.has_bos) == ("random", "float32", False)
    assert result.prompt_tokens == tuple(torch_runner.tokenizer.tokens([5, 6]))
    assert OfPrompt.from_json(result.to_json()) == result
    with pytest.raises(NotImplementedError):
        result.table()


def test_tables_have_a_row_an_entry():
    result = Everything()
    rows = result.table()
    assert len(rows) == 6
    assert rows[-1] == {"row": 1, "column": 2, "n": 5}
    assert result.to_csv().splitlines()[:2] == ["row,column,n", "0,0,0"]
    pandas = pytest.importorskip("pandas")
    assert isinstance(result.to_dataframe(), pandas.DataFrame)
    assert replace(result, ints=np.zeros((2, 0), np.int64)).table() == []


def test_text_and_html(torch_runner):
    result = Everything()
    assert str(result)
    assert result._repr_html_().startswith("<pre")
