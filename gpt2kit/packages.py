"""Packages that may be missing: one error that says how to install them.

`gpt2kit`, `exporters` and `probes` import what a function needs when it is first used, and an
exported file runs without torch. So a package can be missing at any import: every door through
which users come in (attributes of the packages, commands, methods that import late) passes here.
"""

from __future__ import annotations

import platform
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from typing import Any

from gpt2kit.errors import MissingPackageError

_OURS = ("gpt2kit", "exporters", "probes")
_INSTALLED_AS = {  # where `pip install` takes another name than `import`
    "google": "protobuf",
    "onnx_ir": "onnx-ir",
    "sklearn": "gpt2kit[probes]",
}


def missing_package(error: BaseException) -> MissingPackageError | None:
    """The error that explains a failed import; None for any other error, and for our own modules.

    A package that is there and does not import (a wrong version, a library that it lacks) counts.
    """
    if isinstance(error, MissingPackageError):
        return error
    package = (getattr(error, "name", None) or "").partition(".")[0]
    if not isinstance(error, ImportError) or package in ("", *_OURS):
        return None
    if not isinstance(error, ModuleNotFoundError):
        reason = " ".join(str(error).split())
        return MissingPackageError(
            f"{package} does not import ({reason}); "
            f"run `pip install --upgrade --force-reinstall {_installed_as(package)}`"
        )
    hint = ", or use an exported file, which needs no torch" if package == "torch" else ""
    return MissingPackageError(
        f"{package} is not installed; run `pip install {_installed_as(package)}`{hint}"
    )


@contextmanager
def explained_imports() -> Iterator[None]:
    """Raise MissingPackageError in place of the error of an import. A decorator too."""
    try:
        yield
    except ImportError as error:
        if (explained := missing_package(error)) is None:
            raise
        raise explained from error


@explained_imports()
def lazy_attribute(package: str, homes: dict[str, str], name: str) -> Any:
    """The attribute of a package that imports its parts when they are first used.

    homes: name -> the module in the package. Raises AttributeError for any other name.
    """
    if name not in homes:
        raise AttributeError(f"module {package!r} has no attribute {name!r}")
    return getattr(import_module(f"{package}.{homes[name]}"), name)


def _installed_as(package: str) -> str:
    """The name that pip knows; for onnxruntime, the wheel that pyproject.toml asks for here."""
    if package == "onnxruntime":
        has_gpu_wheel = platform.machine() in ("x86_64", "AMD64") and sys.platform != "darwin"
        return "onnxruntime-gpu" if has_gpu_wheel else "onnxruntime"
    return _INSTALLED_AS.get(package, package)
