"""Where the model that ships with the package lies. Imports no torch: exported files need none."""

from __future__ import annotations

from pathlib import Path

BUNDLED = Path(__file__).parent / "bundled"
LENS_FILE = "tuned_lens.safetensors"  # beside its model
