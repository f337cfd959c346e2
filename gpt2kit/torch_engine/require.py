"""Whether a runner is the torch engine: for probes that need gradients, or weights to rewrite."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

from gpt2kit.errors import InputError
from gpt2kit.runner import Runner

if TYPE_CHECKING:
    from gpt2kit.torch_engine.runner import TorchRunner


def as_torch(runner: object) -> TorchRunner | None:
    """The runner if it is a TorchRunner, else None; torch may be missing."""
    module = sys.modules.get("gpt2kit.torch_engine.runner")  # if it is one, this was imported
    return runner if module and isinstance(runner, module.TorchRunner) else None


def require_torch(runner: Runner, what: str) -> TorchRunner:
    """Return `runner` as a TorchRunner. Raise InputError if it is another engine.

    what: what cannot be done without torch, for the message: "input attribution".
    """
    found = as_torch(runner)
    if found is None:
        raise InputError(f"{what} needs the torch engine, not {runner!r}; use gpt2kit.load")
    return found
