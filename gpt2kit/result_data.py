"""Results as plain data and back, driven by the type hints of their fields."""

from __future__ import annotations

import dataclasses
import types
import typing
from collections.abc import Mapping
from typing import Any, TypeVar

import numpy as np

from gpt2kit.errors import InputError

T = TypeVar("T")


def to_plain(value: Any) -> Any:
    """Plain data that JSON knows; NaN becomes None, infinities the words "inf" and "-inf"."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        if hasattr(value, "to_dict"):
            return value.to_dict()
        return {f.name: to_plain(getattr(value, f.name)) for f in dataclasses.fields(value)}
    if isinstance(value, np.ndarray):
        return to_plain(value.tolist())
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
    """An instance of a dataclass from `to_plain`'s data. Raises InputError for a missing field."""
    if not isinstance(data, Mapping):
        raise InputError(f"{cls.__name__}: an object is needed, got {type(data).__name__}")
    hints, given = typing.get_type_hints(cls), {}
    for field in dataclasses.fields(typing.cast("Any", cls)):
        if not field.init:
            continue
        if field.name in data:
            try:
                given[field.name] = _value(hints[field.name], data[field.name])
            except InputError:
                raise
            except (TypeError, ValueError, KeyError) as error:
                what = f"{cls.__name__}: saved {field.name} cannot be read ({error})"
                raise InputError(what) from error
        elif field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING:
            raise InputError(f"{cls.__name__}: saved data has no {field.name}")
    return cls(**given)


def _value(hint: Any, data: Any) -> Any:
    """One value of a type: the inverse of `to_plain`."""
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        if data is None and type(None) in args:
            return None
        return _value(next(arg for arg in args if arg is not type(None)), data)
    if origin is np.ndarray:
        return _array(args[1], data)
    if origin is tuple:
        kinds = args[:1] * len(data) if args[1:] == (...,) else args
        return tuple(_value(kind, part) for kind, part in zip(kinds, data, strict=True))
    if isinstance(origin, type) and issubclass(origin, Mapping):
        key, kind = args
        return {key(name): _value(kind, part) for name, part in data.items()}
    if origin is list:
        return [_value(args[0], part) for part in data]
    if hint is float:
        return _number(data)
    if isinstance(hint, type) and dataclasses.is_dataclass(hint):
        read = getattr(hint, "from_dict", None)
        return read(data) if read else from_plain(hint, data)
    return data


def _number(data: Any) -> float:
    return float("nan") if data is None else float(data)


def _array(dtype: Any, data: Any) -> np.ndarray:
    """An array of nested lists; None is NaN."""
    kind = typing.get_args(dtype)[0]
    if not issubclass(kind, np.floating):
        return np.array(data, kind)
    if not _has_special(data):
        return np.array(data, np.float64)
    numbers: np.ndarray = np.vectorize(_number, otypes=[np.float64])(np.array(data, object))
    return numbers


def _has_special(data: Any) -> bool:
    if isinstance(data, list):
        return any(map(_has_special, data))
    return data is None or isinstance(data, str)


def same(one: Any, other: Any) -> bool:
    """Equality of results: arrays by shape and values (not dtype), NaN equal to NaN."""
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
