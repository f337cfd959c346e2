"""The commands that explain gpt2kit itself: `taps` and `doctor`."""

from __future__ import annotations

import sys

from gpt2kit.cli.group import debug_option, example_command
from gpt2kit.cli.terminal import print_rich

SIGNS = {"ok": ("ok", "green"), "note": ("note", "yellow"), "bad": ("bad", "red")}
EDIT = "TAP [ '[' AXIS=WHERE {, AXIS=WHERE} ']' ] OP VALUE"
GRAMMAR = (  # word, meaning, examples
    ("TAP", "a tap's name, alias or glob", "blocks.6.z, blocks.*.mlp_out"),
    ("AXIS", "an axis of that tap", "head, pos, query, key, d_model, …"),
    ("WHERE", "an index, a range, or a list", "9, 2:5, 3:, [1,4,7]"),
    ("OP", "= sets, += and -= add, *= scales", ""),
    ("VALUE", "a number, a .npy file, or both", "0, mean.npy, 8 * direction.npy"),
)
EDITS = (  # edit, what it does
    ("blocks.6.resid_post += 8 * direction.npy", "steer along a direction"),
    ("blocks.9.z[head=9] = 0", "remove a head (zero ablation)"),
    ("blocks.5.pattern[head=5] *= 0", "keep a head from attending"),
    ("blocks.3.resid_post[pos=4] = clean.npy", "patch one position"),
)


@example_command("gpt2kit taps")
@debug_option
def taps() -> None:
    """List where a model can be read and edited.

    The second part is the grammar of edits, as `generate --edit` reads them.
    """
    from rich.console import Group
    from rich.table import Table
    from rich.text import Text

    from gpt2kit.taps import tap_axes

    names = Table("tap", "axes", box=None, header_style="bold")
    for name, axes in tap_axes(1).items():
        general = name if name.endswith("resid_pre") else name.replace("blocks.0.", "blocks.{i}.")
        names.add_row(general, " ".join("1" if axis == "one" else axis for axis in axes))
    words, edits = (Table(box=None, show_header=False) for _ in range(2))
    edits.add_column(no_wrap=True)
    for row in GRAMMAR:
        words.add_row(*map(Text, row))
    for pair in EDITS:
        edits.add_row(*map(Text, pair))
    title = Text.assemble(("edit  ", "bold"), EDIT)
    print_rich(Group(names, "", title, words, "", Text("examples", "bold"), edits))


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
