"""The commands that explain gpt2kit itself: `taps` and `doctor`."""

from __future__ import annotations

import sys

from gpt2kit.cli.group import debug_option, example_command
from gpt2kit.cli.output import print_rich

SIGNS = {"ok": ("ok", "green"), "note": ("note", "yellow"), "bad": ("bad", "red")}


@example_command("gpt2kit taps")
@debug_option
def taps() -> None:
    """List where a model can be read and edited.

    The second part is the grammar of edits.
    """
    from rich.console import Group
    from rich.table import Table
    from rich.text import Text

    from gpt2kit import edit_grammar
    from gpt2kit.taps import tap_axes

    table = Table("tap", "axes", box=None, header_style="bold")
    for name, axes in tap_axes(1).items():
        general = name if name.endswith("resid_pre") else name.replace("blocks.0.", "blocks.{i}.")
        table.add_row(general, " ".join(axes))
    grammar = Text((edit_grammar.__doc__ or "").strip())
    print_rich(Group(table, "", grammar))


@example_command("gpt2kit doctor")
@debug_option
def doctor() -> None:
    """Say what works on this machine, and what is missing.

    The exit code is 1 if something that gpt2kit needs does not work.
    """
    from rich.table import Table
    from rich.text import Text

    from exporters.engine.doctor import diagnose

    findings = list(diagnose())
    table = Table.grid(padding=(0, 2, 0, 0))
    for finding in findings:
        sign, colour = SIGNS[finding.level]
        table.add_row(Text(sign, colour), Text(finding.text))
    print_rich(table)
    if any(finding.level == "bad" for finding in findings):
        sys.exit(1)
