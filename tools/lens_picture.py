"""Draw docs/lens.svg, the picture of a logit lens that README shows.

    python tools/lens_picture.py

The grid is the one that `gpt2kit lens` prints, on the model inside the package.
"""

from __future__ import annotations

import io
import re
from pathlib import Path

from rich.console import Console
from rich.terminal_theme import MONOKAI

import gpt2kit
from probes import logit_lens

PROMPT, LAST = "Tom and Lily went to the park. Tom gave the ball to", 8  # positions that are drawn
PICTURE = Path(__file__).parents[1] / "docs" / "lens.svg"
COLUMNS = 100  # of the terminal that is drawn


def lens_svg() -> str:
    """The picture as SVG text; the same text each time."""
    gpt2 = gpt2kit.load("bundled", device="cpu")
    lens = logit_lens(gpt2, PROMPT, positions=slice(-LAST, None))
    console = Console(
        file=io.StringIO(), record=True, width=COLUMNS, color_system="truecolor",
        force_terminal=True, force_jupyter=False,
    )  # fmt: skip
    console.print(lens.render())
    title = f'gpt2kit lens "{PROMPT}" --pos -{LAST}:'
    svg = console.export_svg(title=title, theme=MONOKAI, unique_id="lens")
    # The font would be fetched from the web; a viewer's own monospace font serves as well.
    return re.sub(r"\s*@font-face \{.*?\n\s*\}", "", svg, flags=re.DOTALL)


def main() -> None:
    """Write the picture."""
    PICTURE.write_text(lens_svg(), encoding="utf-8")


if __name__ == "__main__":
    main()
