"""The command line: commands by name, errors as one line.

Heavy libraries are imported by the command that needs them.
"""

import sys
from typing import Annotated, Any, NoReturn

import typer

from . import __version__
from .commands import (
    bench,
    check,
    compare,
    demo,
    finetune,
    listing,
    pairs,
    recipe,
    report,
    sample,
    score,
    train_reward,
)
from .commands.arguments import DEBUG, epilog
from .commands.log import log_to_stderr
from .commands.resuming import resume_hint
from .errors import UserError, one_line

app = typer.Typer(
    name="align-gen",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
COMMANDS: dict[str, tuple[Any, str]] = {
    "demo": (demo.demo, demo.EXAMPLE),
    "finetune": (finetune.finetune, finetune.EXAMPLE),
    "sample": (sample.sample, sample.EXAMPLE),
    "score": (score.score, score.EXAMPLE),
    "pairs": (pairs.pairs, pairs.EXAMPLE),
    "train-reward": (train_reward.train_reward, train_reward.EXAMPLE),
    "compare": (compare.compare, compare.EXAMPLE),
    "report": (report.report, report.EXAMPLE),
    "check": (check.check, check.EXAMPLE),
    "bench": (bench.app, bench.EXAMPLE),
    "recipe": (recipe.app, recipe.EXAMPLE),
    "list": (listing.list_, listing.EXAMPLE),
}

for _name, (_command, _example) in COMMANDS.items():
    if isinstance(_command, typer.Typer):
        app.add_typer(_command, name=_name, epilog=epilog(_example))
    else:
        app.command(_name, epilog=epilog(_example))(_command)


def _print_version(wanted: bool) -> None:
    if wanted:
        print(f"align-gen {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool,
        typer.Option(
            "--version", callback=_print_version, is_eager=True, help="Print the version."
        ),
    ] = False,
    # Taken out of the arguments by ``main``, so that it may stand anywhere; here for --help.
    debug: Annotated[
        bool,
        typer.Option(DEBUG, help="With any command: show tracebacks, and what libraries log."),
    ] = False,
) -> None:
    """Align image and video generators with rewards: sample, score, compare, fine-tune."""


def main() -> None:
    """Run the command line: a user's mistake is one line and exit code 2, other failures 1."""
    debug = DEBUG in sys.argv
    if debug:
        sys.argv.remove(DEBUG)
    try:
        with log_to_stderr(debug):
            code = app(prog_name="align-gen", standalone_mode=False)
    except UserError as error:
        if debug:
            raise
        print(f"align-gen: {one_line(error)}", file=sys.stderr)
        raise SystemExit(2) from None
    except Exception as error:
        # The parser's own errors, whichever library typer takes it from.
        if hasattr(error, "format_message"):
            _usage(error)
        if debug:
            raise
        where = f"{resume_hint(error)} ({DEBUG} shows where)"
        print(f"align-gen: {type(error).__name__}: {one_line(error)}{where}", file=sys.stderr)
        raise SystemExit(1) from None
    if code == 130:  # an interruption outside of a run, as typer returns it
        print("align-gen: interrupted", file=sys.stderr)
    if isinstance(code, int) and code:
        raise SystemExit(code)


def _usage(error: Any) -> NoReturn:
    """Print what the parser did not take, in one line; the whole help where there was nothing."""
    if type(error).__name__ == "NoArgsIsHelpError":
        error.show()
    else:
        where = getattr(getattr(error, "ctx", None), "command_path", "align-gen")
        message = one_line(error.format_message())
        print(f"align-gen: {message} (see {where} --help)", file=sys.stderr)
    raise SystemExit(2) from None
