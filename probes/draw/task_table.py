"""The first prompts of a task as a table."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Group, RenderableType
from rich.text import Text

from gpt2kit.printable import printable
from gpt2kit.prompts import counted
from probes.draw.tables import table
from probes.draw.words import title

PROMPTS_SHOWN = 4  # prompts of a table


def task_table(
    task: str,
    prompts: Sequence[str],
    corrupt: Sequence[str],
    answer: str,
    answers: Sequence[str],
) -> RenderableType:
    """Prompts, their corrupted twins, and their answers. answer: the heading of the answers."""
    rows = table("prompt", "corrupted", answer)
    rows.padding = (0, 2, 1, 0)
    rows.columns[-1].no_wrap = True
    for row in list(zip(prompts, corrupt, answers, strict=True))[:PROMPTS_SHOWN]:
        rows.add_row(*(Text("\n".join(map(printable, cell.split("\n")))) for cell in row))
    more = f"the first {PROMPTS_SHOWN} are shown" if len(prompts) > PROMPTS_SHOWN else ""
    return Group(title(task, counted(len(prompts), "prompt"), more), "", rows)
