"""`python -m gpt2kit.cli`."""

from gpt2kit.cli.app import main

main()
