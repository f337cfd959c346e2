"""Numbers that are defaults of arguments. Imports nothing, so that `--help` need not wait."""


class Default(int):
    """The default of an argument: unlike a number that is given, it gives way to a limit."""
