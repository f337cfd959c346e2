"""How the bundled model was trained, in a file beside its weights, so that its card can say it."""

from __future__ import annotations

import dataclasses
import json
import os
import platform
from dataclasses import dataclass
from pathlib import Path

import torch
from recipe import Recipe

NAME = "training.json"
Curve = list[tuple[int, float, float]]


@dataclass(frozen=True)
class TrainingRecord:
    """The recipe, and where and how long it ran.

    curve: (step, training loss, validation loss), in nats per token, at every checkpoint.
    """

    recipe: Recipe
    seconds: float
    curve: Curve
    machine: str
    python: str
    torch: str

    @classmethod
    def here(cls, recipe: Recipe, seconds: float, curve: Curve) -> TrainingRecord:
        """The record of a run on this machine."""
        machine = f"{torch.get_num_threads()} of {os.cpu_count()} CPU cores ({platform.machine()})"
        return cls(recipe, seconds, curve, machine, platform.python_version(), torch.__version__)

    def write(self, folder: Path) -> None:
        """Write the record into a model's folder."""
        content = json.dumps(dataclasses.asdict(self), indent=1)
        (folder / NAME).write_text(content + "\n", encoding="utf-8")

    @classmethod
    def read(cls, folder: Path) -> TrainingRecord:
        """The record in a model's folder."""
        content = json.loads((folder / NAME).read_text(encoding="utf-8"))
        return cls(**content | {"recipe": Recipe(**content["recipe"])})

    @property
    def command(self) -> str:
        """The command that trains with this recipe."""
        given = [
            f"--{field.name.replace('_', '-')} {getattr(self.recipe, field.name)}"
            for field in dataclasses.fields(Recipe)
            if getattr(self.recipe, field.name) != field.default
        ]
        return " ".join(["python tools/train_bundled.py --corpus FOLDER", *given])
