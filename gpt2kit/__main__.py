"""`python -m gpt2kit`: the same as the `gpt2kit` command."""

from gpt2kit.cli.app import main

main()
