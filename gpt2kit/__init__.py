"""gpt2kit: see inside GPT-2, then ship what you saw.

Importing the package does not import torch; what needs it does so when first used.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from gpt2kit import packages

if TYPE_CHECKING:
    from gpt2kit.config import GPT2Config
    from gpt2kit.edits import Edit
    from gpt2kit.errors import GPT2KitError
    from gpt2kit.generation import generate
    from gpt2kit.model import GPT2
    from gpt2kit.readout import Readout
    from gpt2kit.runner import Run, Runner
    from gpt2kit.tokenizer import Tokenizer
    from gpt2kit.torch_engine.load import load
    from gpt2kit.torch_engine.runner import TorchRunner

__version__ = "0.1.0"
__all__ = [
    "GPT2",
    "Edit",
    "GPT2Config",
    "GPT2KitError",
    "Readout",
    "Run",
    "Runner",
    "Tokenizer",
    "TorchRunner",
    "generate",
    "load",
]
_HOME = {
    "GPT2": "model",
    "Edit": "edits",
    "GPT2Config": "config",
    "GPT2KitError": "errors",
    "Readout": "readout",
    "Run": "runner",
    "Runner": "runner",
    "Tokenizer": "tokenizer",
    "TorchRunner": "torch_engine.runner",
    "generate": "generation",
    "load": "torch_engine.load",
}


def __getattr__(name: str) -> Any:
    return packages.lazy_attribute("gpt2kit", _HOME, name)


def __dir__() -> list[str]:
    return __all__
