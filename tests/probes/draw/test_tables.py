"""Tables have no borders and print names as they are."""

from rich.console import Console

from probes.draw.tables import table


def drawn(what, width: int) -> list[str]:
    console = Console(width=width, color_system=None)
    with console.capture() as capture:
        console.print(what)
    return capture.get().splitlines()


def test_tables_have_no_boxes_and_print_names_as_they_are():
    rows = table("[b]", "by", "[i]", "by", numbers=["by"])
    rows.add_row("a", "1.00", "b", "2.00")
    lines = drawn(rows, 80)
    assert lines[0].split() == ["[b]", "by", "[i]", "by"]
    assert lines[1].split() == ["a", "1.00", "b", "2.00"]
    assert lines[0].index("by") + 2 == lines[1].index("1.00") + 4
