"""The `gpt2kit` command. Thin: each command parses, calls the library, and prints."""

from __future__ import annotations

import io
import sys
from typing import TYPE_CHECKING, Any

import click

from gpt2kit import __version__
from gpt2kit.cli import export, probes
from gpt2kit.cli.options import (
    debug_option,
    given,
    open_runner,
    positions,
    runner_options,
    text_of,
)
from gpt2kit.errors import GPT2KitError, InputError

if TYPE_CHECKING:
    from gpt2kit.edits import Edit
    from gpt2kit.runner import Runner


class _Group(click.Group):
    """Turns the package's errors into one line on standard error and an exit code."""

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except (click.ClickException, click.exceptions.Exit, click.Abort, BrokenPipeError):
            raise  # click's own; and whoever read our output has seen enough
        except GPT2KitError as error:
            self._fail(ctx, error, str(error), error.exit_code)
        except OSError as error:  # a name that is too long, a file that may not be read, …
            self._fail(ctx, error, str(error), GPT2KitError.exit_code)
        except Exception as error:  # a bug: say so, and how to see more
            what = (
                f"unexpected {type(error).__name__}: {error} (--debug shows where; please report)"
            )
            self._fail(ctx, error, what, GPT2KitError.exit_code)

    @staticmethod
    def _fail(ctx: click.Context, error: Exception, what: str, exit_code: int) -> None:
        if ctx.obj:
            raise error
        click.echo(f"gpt2kit: error: {' '.join(what.split())}", err=True)
        ctx.exit(exit_code)


@click.group(cls=_Group, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__)
@debug_option
def main() -> None:
    """See inside GPT-2, then ship what you saw."""
    if isinstance(sys.stdout, io.TextIOWrapper):  # a terminal may lack signs that tokens hold
        sys.stdout.reconfigure(errors="replace")


@main.command()
@click.argument("prompts", metavar="PROMPT...", nargs=-1, required=True)
@runner_options
@click.option("-n", "--max-new-tokens", default=40, show_default=True, help="Tokens to add.")
@click.option("--greedy", is_flag=True, help="Always the likeliest token.")
@click.option("--temperature", default=1.0, show_default=True, help="Above 0; lower is safer.")
@click.option("--top-k", default=50, show_default=True, help="Draw from this many tokens.")
@click.option("--top-p", default=1.0, show_default=True, help="Draw from this much probability.")
@click.option("--seed", type=int, help="The same seed gives the same text.")
@click.option("--stop", multiple=True, metavar="TEXT", help="Stop before this; repeatable.")
@click.option(
    "--edit",
    "edit_texts",
    multiple=True,
    metavar="EDIT",
    help="e.g. 'blocks.9.z[head=9] = 0'; repeatable. Without --lens, both texts are shown.",
)
@click.option("--lens", "with_lens", is_flag=True, help="Show where each token comes to lead.")
@debug_option
def generate(
    prompts: tuple[str, ...],
    model: str,
    revision: str | None,
    onnx_file: str | None,
    device: str,
    dtype: str,
    edit_texts: tuple[str, ...],
    with_lens: bool,
    **options: Any,
) -> None:
    """Continue a prompt.

    '-' reads it from standard input; several prompts run as one batch. An edit is TAP[AXIS=WHERE]
    = VALUE (or +=, -=, *=), a value a number, FILE.npy, or NUMBER * FILE.npy: see `gpt2kit taps`.
    """
    from gpt2kit.edits import Edit
    from gpt2kit.generation import generate as run

    texts = [text_of(prompt) for prompt in prompts]
    edits = [Edit.parse(text) for text in edit_texts]
    if len(texts) > 1 and (edits or with_lens):
        raise InputError("--edit and --lens take one prompt at a time")
    if with_lens:
        _generate_with_lens(
            open_runner(model, revision, onnx_file, device, dtype), texts[0], edits, options
        )
        return
    if edits:
        _generate_edited(
            open_runner(model, revision, onnx_file, device, dtype), texts[0], edit_texts, options
        )
        return
    runner = open_runner(model, revision, onnx_file, device, dtype)
    if len(texts) > 1:
        for text, new in zip(texts, run(runner, texts, **options), strict=True):
            click.echo(click.style(text, dim=True) + new + "\n")
        return
    started = False

    def stream(_: int, piece: str) -> None:
        nonlocal started
        if not started:  # after every check has passed
            click.echo(click.style(texts[0], dim=True), nl=False)
            started = True
        click.echo(piece, nl=False)
        sys.stdout.flush()

    run(runner, texts[0], on_text=stream, **options)
    click.echo("" if started else click.style(texts[0], dim=True))


def _generate_with_lens(
    runner: Runner, prompt: str, edits: list[Edit], options: dict[str, Any]
) -> None:
    from rich.console import Console

    from probes.lens.generation_lens import Step, generation_lens
    from probes.lens.generation_view import header, line

    console, started = Console(highlight=False), False

    def show(step: Step) -> None:
        nonlocal started
        if not started:  # after every check has passed
            for text in header(runner.config.n_layer + 1):
                console.print(text)
            started = True
        console.print(line(step), no_wrap=True, overflow="ellipsis", crop=True)

    lens = generation_lens(runner, prompt, edits=edits, on_step=show, **options)
    click.echo("\n" + click.style(prompt, dim=True) + lens.text)


def _generate_edited(
    runner: Runner, prompt: str, edits: tuple[str, ...], options: dict[str, Any]
) -> None:
    from rich.console import Console

    from probes.causal.edit_effect import edit_effect

    with Console(stderr=True).status("generating"):
        effect = edit_effect(runner, prompt, edits, **options)
    Console(highlight=False).print(effect.render())


@main.command()
@click.argument("prompt")
@runner_options
@click.option(
    "--by", default="prob", show_default=True, help="Colour: prob, logit, rank, entropy or kl."
)
@click.option("--target", metavar="TOKEN", help="Follow this token, e.g. ' Paris'.")
@click.option("--foil", metavar="TOKEN", help="Show the target's logit minus this one's.")
@click.option("--topk", default=1, show_default=True, help="Tokens a cell (and in the files).")
@click.option("--pos", callback=positions, help="Positions: 3, -1, 1,4,7 or 2:8.")
@click.option("--sites", default="resid", show_default=True, help="resid, mid, attn or mlp.")
@click.option("--bos", is_flag=True, help="Put <|endoftext|> in front.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@click.option("--csv", "as_csv", is_flag=True, help="Print CSV.")
@debug_option
def lens(
    prompt: str,
    model: str,
    revision: str | None,
    onnx_file: str | None,
    device: str,
    dtype: str,
    by: str,
    target: str | None,
    foil: str | None,
    topk: int,
    pos: list[int] | slice | None,
    sites: str,
    bos: bool,
    as_json: bool,
    as_csv: bool,
) -> None:
    """Show what each layer would say next (logit lens).

    '-' reads the prompt from standard input.
    """
    from rich.console import Console

    from probes.lens.lens_view import show
    from probes.lens.logit_lens import QUANTITIES, logit_lens

    if by not in QUANTITIES:
        raise InputError(f"--by {by!r} is not one of {', '.join(QUANTITIES)}")
    if foil is not None and target is None:
        raise InputError("--foil needs a --target to compare with")
    if foil is not None and given("by"):
        raise InputError("--by does not go with --foil, whose cells are a difference of logits")
    if as_json and as_csv:
        raise InputError("--json and --csv: choose one")
    text = text_of(prompt)
    with Console(stderr=True).status("reading every layer"):
        result = logit_lens(
            open_runner(model, revision, onnx_file, device, dtype),
            text,
            top_k=topk,
            targets=[token for token in (target, foil) if token is not None],
            sites=sites,
            positions=pos,
            prepend_bos=bos,
        )
    if as_json:
        click.echo(result.to_json().encode())  # UTF-8 whatever the terminal speaks
    elif as_csv:
        click.echo(result.to_csv().encode(), nl=False)
    else:
        show(result, Console(highlight=False), by=by, lines=topk)


@main.command()
@debug_option
def taps() -> None:
    """List where a model can be read and edited.

    And how an edit is written.
    """
    from rich.console import Console
    from rich.table import Table

    from gpt2kit import edit_grammar
    from gpt2kit.taps import tap_axes

    table = Table("tap", "axes", box=None, header_style="bold")
    for name, axes in tap_axes(1).items():
        general = name if name.endswith("resid_pre") else name.replace("blocks.0.", "blocks.{i}.")
        table.add_row(general, " ".join(axes))
    console = Console(highlight=False, markup=False)
    console.print(table)
    console.print("\n" + (edit_grammar.__doc__ or "").strip(), soft_wrap=True)


@main.command()
@debug_option
def doctor() -> None:
    """Say what works here, and what is missing."""
    from rich.console import Console
    from rich.markup import escape

    from exporters.engine.doctor import diagnose

    console, fine = Console(highlight=False), True
    for finding in diagnose():
        sign = {"ok": "[green]ok[/]  ", "note": "[yellow]note[/]", "bad": "[red]bad[/] "}
        console.print(f"{sign[finding.level]}  {escape(finding.text)}", soft_wrap=True)
        fine = fine and finding.level != "bad"
    if not fine:
        sys.exit(1)


for command in (*export.COMMANDS, *probes.COMMANDS):
    main.add_command(command)
