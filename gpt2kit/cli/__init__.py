"""The `gpt2kit` command: the front door, the only room that imports every package."""

from gpt2kit.cli.app import main

__all__ = ["main"]
