"""The house: which module may import which, and how large files and functions may grow.

docs/architecture.md explains the rooms. Imports inside functions and under TYPE_CHECKING count.
"""

import ast
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
# A room or file that is not listed here must be added on purpose.
ROOMS = {
    "exporters": {"engine", "export.py", "file", "parity", "sidecars", "tracing"},
    "probes": {
        "attribution",
        "causal",
        "core",
        "directions",
        "draw",
        "facts",
        "heads",
        "lens",
        "neurons",
        "tasks",
    },
}
# What each package may import of the others; the command line is the only part that sees all.
BELOW = {
    "gpt2kit": set(),
    "exporters": {"gpt2kit"},
    "probes": {"gpt2kit"},
    "gpt2kit.cli": {"gpt2kit", "exporters", "probes"},
}
FILE_LINES, FUNCTION_LINES = 350, 40
LONG_FILES = {"gpt2kit/model.py"}  # the whole model, read top-down


def modules() -> dict[str, Path]:
    """Dotted name -> file, of every module of the three packages."""
    found = {}
    for package in ("gpt2kit", "exporters", "probes"):
        for file in sorted((ROOT / package).rglob("*.py")):
            name = ".".join(file.relative_to(ROOT).with_suffix("").parts)
            found[name.removesuffix(".__init__")] = file
    return found


MODULES = modules()


@cache
def parsed(file: Path) -> ast.Module:
    return ast.parse(file.read_text(encoding="utf-8"))


def imported_names(module: str, file: Path) -> Iterator[str]:
    """Dotted names that a module imports; `from a import b` is "a.b"."""
    package = module if file.name == "__init__.py" else module.rpartition(".")[0]
    for node in ast.walk(parsed(file)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                parts = package.split(".")
                base = ".".join([*parts[: len(parts) - node.level + 1], *filter(None, [base])])
            yield from (f"{base}.{alias.name}" for alias in node.names)


def home(name: str) -> str:
    """The module of ours that a dotted name lies in; "" if it is none of ours."""
    while name and name not in MODULES:
        name = name.rpartition(".")[0]
    return name


EDGES = {
    module: {found for name in imported_names(module, file) if (found := home(name))} - {module}
    for module, file in MODULES.items()
}


def part(module: str) -> str:
    """The package of a module; the command line counts as one of its own."""
    in_cli = module.startswith("gpt2kit.cli") or module == "gpt2kit.__main__"
    return "gpt2kit.cli" if in_cli else module.split(".")[0]


def on_a_circle(edges: dict[str, set[str]]) -> set[str]:
    """Modules that import themselves in the end: what stays when all others are taken away."""
    left = {module: set(targets) for module, targets in edges.items()}
    while True:
        used = set().union(*left.values()) if left else set()
        ends = {module for module, targets in left.items() if not targets or module not in used}
        if not ends:
            return set(left)
        left = {m: targets - ends for m, targets in left.items() if m not in ends}


def test_imports_go_in_no_circle():
    assert on_a_circle(EDGES) == set()


def test_a_circle_would_be_found():
    edges = {"a": {"b"}, "b": {"c"}, "c": {"b"}, "d": {"a"}, "e": set()}
    assert on_a_circle(edges) == {"b", "c"}
    assert "gpt2kit.model" in EDGES["gpt2kit.torch_engine.runner"]


def test_imports_go_one_way():
    wrong = [
        f"{module} imports {target}"
        for module, targets in EDGES.items()
        for target in targets
        if part(target) not in BELOW[part(module)] | {part(module)}
    ]
    assert wrong == []


@pytest.mark.parametrize("package", ROOMS)
def test_rooms_are_listed(package):
    found = {
        entry.name
        for entry in (ROOT / package).iterdir()
        if (entry.suffix == ".py" and entry.stem != "__init__")
        or (entry.is_dir() and any(entry.rglob("*.py")))
    }
    assert found == ROOMS[package]
    assert len(found) <= {"exporters": 8, "probes": 12}[package]


def test_files_are_short():
    sizes = {
        str(file.relative_to(ROOT)): len(file.read_text(encoding="utf-8").splitlines())
        for file in MODULES.values()
    }
    assert {f: n for f, n in sizes.items() if n > FILE_LINES and f not in LONG_FILES} == {}


def length(function: ast.FunctionDef) -> int:
    """Lines of a function without its docstring."""
    assert function.end_lineno is not None
    docstring = ast.get_docstring(function, clean=False) or ""
    return function.end_lineno - function.lineno + 1 - len(docstring.splitlines())


def test_functions_are_short():
    long = {
        f"{module}.{node.name}": length(node)
        for module, file in MODULES.items()
        for node in ast.walk(parsed(file))
        if isinstance(node, ast.FunctionDef) and length(node) > FUNCTION_LINES
    }
    assert long == {}
