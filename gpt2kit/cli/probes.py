"""The commands of the probes: heads, attn, attribute, patch, ablate, facts."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import click

from gpt2kit.cli.options import debug_option, given, open_runner, options, runner_options, text_of
from gpt2kit.errors import InputError

if TYPE_CHECKING:
    from rich.console import RenderableType
    from rich.progress import Progress

    from gpt2kit.result import Result
    from probes.core.metrics import Metric

output_options = options(
    click.option("--json", "as_json", is_flag=True, help="Print JSON."),
    debug_option,
)
bos_option = click.option("--bos", is_flag=True, help="Put <|endoftext|> in front.")
metric_options = options(
    click.option("--target", required=True, metavar="TOKEN", help="The right answer, ' Mary'."),
    click.option(
        "--foil", metavar="TOKEN", help="The wrong one; without it, log-probability is measured."
    ),
)


@click.command()
@click.option("--prompt", metavar="TEXT", help="Score on this text; '-' reads standard input.")
@click.option("--length", default=50, show_default=True, help="Random tokens to say twice.")
@runner_options
@output_options
def heads(prompt: str | None, length: int, as_json: bool, **engine: Any) -> None:
    """Show which heads do what.

    How much each head looks at the token before, at copies, after copies (induction), on random
    tokens said twice or on a text; and, by its weights alone, whether it copies.
    """
    from rich.console import Group

    from probes.heads.attention import head_scores
    from probes.heads.circuits import copying_score

    if prompt is not None and given("length"):
        raise InputError("--length does not go with --prompt, which has its own")
    text = None if prompt is None else text_of(prompt)
    with _status() as status:
        runner = open_runner(**engine)
        status.update("looking at every head")
        scores = head_scores(runner, prompt=text, length=length, on_progress=status.count)
        status.update("reading every head's weights")
        copying = copying_score(runner)
    if as_json:
        _json({**scores.to_dict(), "copying": copying.to_dict()["scores"]})
    else:
        _print(Group(scores.render(), "", copying.render()))


@click.command()
@click.argument("prompt")
@click.option("--layer", required=True, type=int, help="From 0; negative from the end.")
@click.option("--head", required=True, type=int, help="From 0.")
@bos_option
@runner_options
@output_options
def attn(prompt: str, layer: int, head: int, bos: bool, as_json: bool, **engine: Any) -> None:
    """Show where one head looks.

    '-' reads the prompt from standard input.
    """
    from probes.heads.attention import attention_patterns

    text = text_of(prompt)
    with _status():
        found = attention_patterns(open_runner(**engine), text, layers=[layer], prepend_bos=bos)
    _show(found.show(found.layers[0], head), as_json)


@click.command()
@click.argument("prompt")
@click.option("--target", required=True, metavar="TOKEN", help="Whose logit, e.g. ' Mary'.")
@click.option("--foil", metavar="TOKEN", help="Minus this one's.")
@click.option("--by", default="component", show_default=True, help="component, head or neuron.")
@click.option("--pos", default=-1, show_default=True, help="The target comes after this one.")
@bos_option
@runner_options
@output_options
def attribute(
    prompt: str,
    target: str,
    foil: str | None,
    by: str,
    pos: int,
    bos: bool,
    as_json: bool,
    **engine: Any,
) -> None:
    """Show which parts of the model a logit comes from.

    '-' reads the prompt from standard input.
    """
    from probes.attribution.direct import direct_logit_attribution

    text = text_of(prompt)
    with _status() as status:
        runner = open_runner(**engine)
        status.update("attributing")
        result = direct_logit_attribution(
            runner,
            text,
            target=target,
            foil=foil,
            by=by,
            position=pos,
            prepend_bos=bos,
        )
    _show(result, as_json)


@click.command()
@click.option("--clean", required=True, metavar="PROMPT", help="Its values are put in.")
@click.option("--corrupt", required=True, metavar="PROMPT", help="Run with them; as many tokens.")
@metric_options
@click.option(
    "--over", default="resid_post", show_default=True, help="A tap, e.g. z, mlp_out, embed."
)
@runner_options
@output_options
def patch(
    clean: str,
    corrupt: str,
    target: str,
    foil: str | None,
    over: str,
    as_json: bool,
    **engine: Any,
) -> None:
    """Put one prompt's values into another's run.

    Activation patching: place by place, how much of the clean prompt's answer comes back. '-' reads
    a prompt from standard input.
    """
    from probes.causal.patching import activation_patching

    if clean == corrupt == "-":
        raise InputError("--clean and --corrupt are both '-'; standard input holds one prompt")
    texts = text_of(clean), text_of(corrupt)
    with _status() as status:
        runner = open_runner(**engine)
        status.update("patching")
        result = activation_patching(
            runner, *texts, metric=_metric(target, foil), over=over, on_progress=status.count
        )
    _show(result, as_json)


@click.command()
@click.argument("prompt")
@metric_options
@click.option("--over", default="z", show_default=True, help="A tap, e.g. z, mlp_out, embed.")
@click.option("--kind", default="zero", show_default=True, help="zero, mean or resample.")
@click.option(
    "--reference", multiple=True, metavar="TEXT", help="Mean of this, draw from this; repeatable."
)
@runner_options
@output_options
def ablate(
    prompt: str,
    target: str,
    foil: str | None,
    over: str,
    kind: str,
    reference: tuple[str, ...],
    as_json: bool,
    **engine: Any,
) -> None:
    """Take out each head and see what it was good for.

    Or each layer's part, with --over mlp_out or attn_out. Put in instead: nothing; a mean over the
    positions of the prompt, or of --reference; or the values of a --reference (resample). '-'
    reads the prompt from standard input.
    """
    from probes.causal.ablation import ablate as run

    if reference and kind == "zero":
        raise InputError("--reference does not go with --kind zero, which puts nothing in")
    text, others = text_of(prompt), [text_of(other) for other in reference]
    with _status() as status:
        runner = open_runner(**engine)
        status.update("ablating")
        result = run(
            runner,
            text,
            metric=_metric(target, foil),
            over=over,
            kind=kind,
            reference=others or None,
            on_progress=status.count,
        )
    _show(result, as_json)


@click.command()
@runner_options
@output_options
def facts(as_json: bool, **engine: Any) -> None:
    """Check published facts about gpt2.

    The exit code is 1 if one does not hold, 3 if the model is not the real gpt2.
    """
    from gpt2kit.errors import CheckpointError
    from probes.facts.facts import NotTheRealModel, check_facts

    with _status() as status:
        try:
            runner = open_runner(**engine)
        except CheckpointError as error:
            if engine["model"] != "gpt2":
                raise
            raise NotTheRealModel(f"the real gpt2 cannot be had here: {error}") from error
        status.update("checking facts")
        report = check_facts(runner, on_progress=status.count)
    _show(report, as_json)
    if not report.passed:
        sys.exit(1)


COMMANDS = (heads, attn, attribute, patch, ablate, facts)


def _metric(target: str, foil: str | None) -> Metric:
    from probes.core.metrics import Metric

    return Metric.logprob(target) if foil is None else Metric.logit_diff(target, foil)


class _Status:
    """What goes on: in words, and a bar and a count where something is counted."""

    def __init__(self, progress: Progress) -> None:
        self.progress = progress
        self.task = progress.add_task("loading the model", total=None, count="")

    def update(self, what: str) -> None:
        """Something else begins."""
        self.progress.reset(self.task, total=None, description=what, count="")
        self.progress.refresh()

    def count(self, done: int, total: int) -> None:
        """So much of it is done."""
        self.progress.update(
            self.task,
            completed=done,
            total=total,
            count=f"{done}/{total}",
            refresh=done == total,
        )


@contextmanager
def _status() -> Iterator[_Status]:
    """What goes on, on standard error if that is a terminal."""
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn

    console = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.fields[count]}"))
    with Progress(
        *columns, console=console, transient=True, disable=not console.is_terminal
    ) as progress:
        yield _Status(progress)


def _show(result: Result, as_json: bool) -> None:
    if as_json:
        _json(result.to_dict())
    else:
        _print(result.render())


def _json(data: dict[str, Any]) -> None:
    import json

    text = json.dumps(data, ensure_ascii=False, indent=1, allow_nan=False)
    click.echo(text.encode())  # UTF-8 whatever the terminal speaks


def _print(what: RenderableType) -> None:
    from rich.console import Console

    Console(highlight=False).print(what)
