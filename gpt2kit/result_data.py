"""Results as plain data and back, driven by the type hints of their fields.

JSON has no NaN and no infinities: NaN is saved as null, the infinities as "inf" and "-inf". A field
`float | None` therefore reads NaN back as None. Nested lists cannot tell the shape of some empty
arrays; such an array is saved as {"shape": [0, 3]}.
"""

from __future__ import annotations

import dataclasses
import types
import typing
from collections.abc import Mapping
from typing import Any, TypeVar

import numpy as np

from gpt2kit.checks import short
from gpt2kit.errors import InputError

T = TypeVar("T")
_UNREADABLE = (TypeError, ValueError, KeyError, OverflowError)  # InputError is a ValueError


def to_plain(value: Any) -> Any:
    """Plain data that JSON can hold, of a result, an array, or any value of a field."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        if hasattr(value, "to_dict"):
            return value.to_dict()
        return {f.name: to_plain(getattr(value, f.name)) for f in dataclasses.fields(value)}
    if isinstance(value, np.ndarray):
        nested = value.tolist()
        if value.size == 0 and np.shape(nested) != value.shape:
            return {"shape": list(value.shape)}
        return to_plain(nested)
    if isinstance(value, Mapping):
        return {str(key): to_plain(part) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [to_plain(part) for part in value]
    if isinstance(value, np.generic):
        return to_plain(value.item())
    if isinstance(value, float) and not np.isfinite(value):
        return None if np.isnan(value) else str(value)
    return value


def from_plain(cls: type[T], data: Mapping[str, Any]) -> T:
    """An instance of a dataclass from the data that `to_plain` made of one.

    Raises InputError for a missing field, or a value that does not fit the field's type.
    """
    if not isinstance(data, Mapping):
        raise InputError(f"{cls.__name__}: an object is needed, got {type(data).__name__}")
    hints, given = typing.get_type_hints(cls), {}
    for field in dataclasses.fields(typing.cast("Any", cls)):
        if not field.init:
            continue
        if field.name in data:
            given[field.name] = _field(cls, field.name, hints[field.name], data[field.name])
        elif field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING:
            raise InputError(f"{cls.__name__}: saved data has no {field.name}")
    return cls(**given)


def _field(cls: type, name: str, hint: Any, data: Any) -> Any:
    try:
        return _read_value(hint, data)
    except _UNREADABLE as error:
        what = " ".join(str(error).split())
        raise InputError(f"{cls.__name__}: saved {name} cannot be read ({what})") from error


def _read_value(hint: Any, data: Any) -> Any:
    """One value of a type: the inverse of `to_plain`."""
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        return _union(args, data)
    if origin is np.ndarray:
        return _read_array(typing.get_args(args[1])[0], data)
    if origin is tuple:
        parts = _expect(data, list, tuple)
        kinds = args[:1] * len(parts) if args[1:] == (...,) else args
        return tuple(_read_value(kind, part) for kind, part in zip(kinds, parts, strict=True))
    if origin is list:
        return [_read_value(args[0], part) for part in _expect(data, list, tuple)]
    if isinstance(origin, type) and issubclass(origin, Mapping):
        key, kind = args
        return {key(name): _read_value(kind, part) for name, part in _expect(data, Mapping).items()}
    if isinstance(hint, type) and dataclasses.is_dataclass(hint):
        read = getattr(hint, "from_dict", None)
        return read(data) if read else from_plain(hint, data)
    return _scalar(hint, data)


def _scalar(hint: Any, data: Any) -> Any:
    """A number, a flag or a text; data of any other type hint stays as it is."""
    if hint is float:
        return _read_number(data)
    if hint is int and isinstance(data, bool):
        raise TypeError(f"{data} is not int")
    if hint in (int, bool, str):
        return _expect(data, hint)
    return data


def _union(kinds: tuple[Any, ...], data: Any) -> Any:
    """The first type of a union that the data fits."""
    if data is None and type(None) in kinds:
        return None
    others = [kind for kind in kinds if kind is not type(None)]
    for kind in others[:-1]:
        try:
            return _read_value(kind, data)
        except _UNREADABLE:
            continue
    return _read_value(others[-1], data)


def _expect(data: Any, *kinds: type) -> Any:
    """The data. Raises TypeError unless it is of one of these types."""
    if not isinstance(data, kinds):
        raise TypeError(f"{short(data)} is not {kinds[0].__name__}")
    return data


def _read_number(data: Any) -> float:
    """A float, of null or one of the words "inf" and "-inf" as well."""
    if data is None:
        return float("nan")
    if data in ("inf", "-inf"):
        return float(data)
    if isinstance(data, bool) or not isinstance(data, int | float):
        raise TypeError(f"{short(data)} is not float")
    return float(data)


def _read_array(kind: Any, data: Any) -> np.ndarray:
    """An array from nested lists. kind: its numpy scalar type, abstract or not."""
    if isinstance(data, Mapping):
        return np.zeros(data["shape"], np.float64 if _is(kind, np.floating) else kind)
    if _is(kind, np.floating):
        if _has_special(data):
            special: np.ndarray = np.vectorize(_read_number, otypes=[float])(np.array(data, object))
            return special
        return _cast(data, "fiu", np.float64)
    if _is(kind, np.bool_):
        return _cast(data, "b", np.bool_)
    if _is(kind, np.integer):
        return _cast(data, "iu", np.int64)
    return np.array(data)


def _is(kind: Any, of: type) -> bool:
    return isinstance(kind, type) and issubclass(kind, of)


def _cast(data: Any, kinds: str, dtype: type) -> np.ndarray:
    """Nested lists as an array of `dtype`. Raises TypeError for other kinds of entries."""
    array = np.array(data)
    if array.size and array.dtype.kind not in kinds:
        raise TypeError(f"it holds {array.dtype}")
    return array.astype(dtype)


def _has_special(data: Any) -> bool:
    """Whether nested lists hold null, "inf" or "-inf"."""
    if isinstance(data, list | tuple):
        return any(map(_has_special, data))
    return data is None or isinstance(data, str)


def same(one: Any, other: Any) -> bool:
    """Whether two values are equal: arrays by shape and values (not dtype), NaN equals NaN."""
    if isinstance(one, np.ndarray) or isinstance(other, np.ndarray):
        one, other = np.asarray(one), np.asarray(other)
        nan = one.dtype.kind == "f" and other.dtype.kind == "f"
        return one.shape == other.shape and bool(np.array_equal(one, other, equal_nan=nan))
    if dataclasses.is_dataclass(one) and type(one) is type(other):
        fields = dataclasses.fields(one)
        return all(same(getattr(one, f.name), getattr(other, f.name)) for f in fields)
    if isinstance(one, tuple | list) and isinstance(other, tuple | list):
        return len(one) == len(other) and all(map(same, one, other))
    if isinstance(one, Mapping) and isinstance(other, Mapping):
        return one.keys() == other.keys() and all(same(one[key], other[key]) for key in one)
    if isinstance(one, float) and isinstance(other, float) and np.isnan(one):
        return bool(np.isnan(other))
    return bool(one == other)
