"""The examples in docstrings show what the code does."""

import doctest
import importlib

import pytest


@pytest.mark.parametrize("module", ["edits", "edit_arrays", "testing"])
def test_examples_in_docstrings(module):
    failed, tried = doctest.testmod(importlib.import_module(f"gpt2kit.{module}"))
    assert tried
    assert not failed
