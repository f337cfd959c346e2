"""The public names, and what importing costs."""

import ast
import importlib
import inspect
import subprocess
import sys
import typing

import pytest

PACKAGES = ["gpt2kit", "exporters", "probes"]
HEAVY = ["torch", "onnx", "onnxruntime", "onnxscript", "transformers", "huggingface_hub", "rich"]


@pytest.mark.parametrize("package", PACKAGES)
def test_every_public_name_is_there_and_documented(package):
    module = importlib.import_module(package)
    assert len(set(module.__all__)) == len(module.__all__)
    assert set(module.__all__) <= set(dir(module))
    for name in module.__all__:
        assert inspect.getdoc(getattr(module, name)), name


@pytest.mark.parametrize("package", PACKAGES)
def test_no_public_name_is_missing_from_the_list(package):
    """What a package's `__init__` brings in by import, at once or lazily, is in `__all__`."""
    module = importlib.import_module(package)
    names = {
        alias.asname or alias.name
        for node in ast.walk(ast.parse(inspect.getsource(module)))
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith(f"{package}.")
        for alias in node.names
    }
    assert names == set(module.__all__)
    assert set(getattr(module, "_HOME", module.__all__)) == set(module.__all__)


@pytest.mark.parametrize("package", ["gpt2kit", "exporters"])
def test_an_unknown_name_is_an_attribute_error(package):
    with pytest.raises(AttributeError, match=f"module '{package}' has no attribute 'nothing'"):
        importlib.import_module(package).nothing  # noqa: B018


def loaded_by(code: str) -> set[str]:
    """Which of the heavy modules a fresh interpreter has after running `code`."""
    show = f"import sys; print(*[name for name in {HEAVY} if name in sys.modules])"
    done = subprocess.run(
        [sys.executable, "-c", f"{code}\n{show}"], capture_output=True, text=True, check=True
    )
    return set(done.stdout.split())


def test_importing_the_package_imports_nothing_heavy():
    assert loaded_by("import gpt2kit") == set()


def test_importing_the_probes_imports_nothing_heavy():
    """Results import rich only when they are drawn."""
    assert loaded_by("import probes") == set()


def test_the_seam_imports_no_engine():
    code = "import gpt2kit.runner, gpt2kit.edits, gpt2kit.taps, gpt2kit.sampling; gpt2kit.generate"
    assert loaded_by(code) == set()


def test_loading_a_model_imports_only_torch_of_the_engines():
    assert loaded_by("import gpt2kit; gpt2kit.load") <= {"torch", "huggingface_hub"}


def test_the_model_imports_neither_exporters_nor_probes():
    code = (
        "import sys, gpt2kit; [getattr(gpt2kit, name) for name in gpt2kit.__all__]\n"
        "assert not {'exporters', 'probes'} & set(sys.modules)"
    )
    loaded_by(code)


def test_the_torch_engine_is_a_runner(torch_runner):
    """It has what the protocol names, with the same parameters."""
    import gpt2kit

    for name in typing.get_protocol_members(gpt2kit.Runner) if sys.version_info >= (3, 13) else ():
        assert hasattr(torch_runner, name)
    for name in ("run", "readout", "unembed", "weight", "new_cache"):
        theirs = inspect.signature(getattr(gpt2kit.Runner, name)).parameters
        ours = inspect.signature(getattr(gpt2kit.TorchRunner, name)).parameters
        assert [(p.name, p.kind, p.default) for p in ours.values()] == [
            (p.name, p.kind, p.default) for p in theirs.values()
        ]


def test_every_error_is_of_the_tree_and_has_an_exit_code():
    from gpt2kit import errors

    kinds = [x for x in vars(errors).values() if inspect.isclass(x)]
    assert len(kinds) == 12
    for kind in kinds:
        assert issubclass(kind, errors.GPT2KitError)
        codes = {errors.ParityError: 1, errors.InternalError: 70}
        assert kind.exit_code == codes.get(kind, 2)
        assert kind.__name__ in (errors.__doc__ or "")


def test_a_bug_of_ours_asks_to_be_reported():
    from gpt2kit.errors import InternalError

    error = InternalError("the parts do not add up")
    assert str(error) == "the parts do not add up; this is a bug in gpt2kit, please report it"
