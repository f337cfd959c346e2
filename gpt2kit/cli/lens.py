"""The command `lens`."""

from __future__ import annotations

from typing import Any

import click

from gpt2kit.cli.choices import INTEGER, QUANTITIES, SITES
from gpt2kit.cli.group import example_command
from gpt2kit.cli.options import (
    EngineChoice,
    bos_option,
    given,
    options,
    positions,
    runner_options,
    text_of,
)
from gpt2kit.cli.output import DataFormat, output_options
from gpt2kit.cli.progress import show_status
from gpt2kit.cli.terminal import print_rich
from gpt2kit.errors import InputError

_cell_options = options(
    click.option(
        "--by", type=click.Choice(QUANTITIES), default="prob", show_default=True,
        help="What the colour of a cell shows.",
    ),
    click.option("--target", metavar="TOKEN", help="Follow this token, e.g. ' Paris'."),
    click.option("--foil", metavar="TOKEN", help="Show the target's logit minus this one's."),
    click.option(
        "--topk", type=INTEGER, default=1, show_default=True, help="Tokens in each cell."
    ),
    click.option("--pos", callback=positions, help="Positions: 3, -1, 1,4,7 or 2:8."),
    click.option(
        "--sites", type=click.Choice(SITES), default="resid", show_default=True,
        help="What is read: the residual stream after a layer or in its middle, or one write.",
    ),
    click.option(
        "--tuned", is_flag=True,
        help="Read through the tuned lens, which ships for the bundled model.",
    ),
)  # fmt: skip


@example_command(
    'gpt2kit lens "Tom and Lily went to the park. Tom gave the ball to"',
    "gpt2kit lens \"The girl lost\" --target ' her' --foil ' his'",
    'gpt2kit lens "One day, Lily and Tom" --topk 3 --pos -4:',
    'gpt2kit lens "One day, Lily and Tom" --tuned --model bundled',
)
@click.argument("prompt")
@_cell_options
@bos_option
@runner_options
@output_options
def lens(
    prompt: str,
    engine: EngineChoice,
    output: DataFormat,
    by: str,
    target: str | None,
    foil: str | None,
    topk: int,
    pos: list[int] | slice | None,
    sites: str,
    tuned: bool,
    bos: bool,
) -> None:
    """Show what each layer would say next (logit lens).

    '-' reads the prompt from standard input.
    """
    from probes.lens.logit_lens import logit_lens
    from probes.lens.tuned_lens import tuned_lens

    _check_target(target, foil)
    if tuned and sites != "resid":
        raise InputError(f"--sites {sites} does not go with --tuned, which reads --sites resid")
    text = text_of(prompt)
    reading: dict[str, Any] = {
        "top_k": topk,
        "targets": [token for token in (target, foil) if token is not None],
        "positions": pos,
        "prepend_bos": bos,
    }
    with show_status() as status:
        runner = engine.open()
        status.update("reading every layer")
        if tuned:
            result = tuned_lens(runner, text, **reading)
        else:
            result = logit_lens(runner, text, sites=sites, **reading)
    if output.is_data:
        output.show_data(result)
    else:
        print_rich(result.grid(by=by, lines=topk))


def _check_target(target: str | None, foil: str | None) -> None:
    if foil is not None and target is None:
        raise InputError("--foil needs a --target to compare with")
    if foil is not None and given("by"):
        raise InputError("--by does not go with --foil, whose cells are a difference of logits")
