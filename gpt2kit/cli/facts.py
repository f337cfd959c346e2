"""The command `facts`."""

from __future__ import annotations

import sys

from gpt2kit.cli.group import example_command
from gpt2kit.cli.options import EngineChoice, runner_options
from gpt2kit.cli.output import DataFormat, output_options
from gpt2kit.cli.progress import show_status


@example_command("gpt2kit facts --model gpt2", "gpt2kit facts --model bundled")
@runner_options
@output_options
def facts(engine: EngineChoice, output: DataFormat) -> None:
    """Check stated facts about gpt2 or the bundled model.

    The exit code is 1 if a fact does not hold, 3 if no facts are stated about the model.
    """
    from gpt2kit.errors import CheckpointError
    from probes.facts.check import check_facts
    from probes.facts.real_gpt2 import NotTheRealModel

    with show_status() as status:
        try:
            runner = engine.open()
        except CheckpointError as error:
            if engine.model != "gpt2":
                raise
            raise NotTheRealModel(f"the real gpt2 cannot be had here: {error}") from error
        status.update("checking facts")
        report = check_facts(runner, on_progress=status.count)
    output.show(report)
    if not report.passed:
        sys.exit(1)
