"""The `edgeclf` program: collects the verbs, and turns every foreseen error into one line and an exit code."""

from __future__ import annotations

import os
import sys
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from edgeclf.cli import export, info, live, measure, report, train
from edgeclf.core.errors import EXIT_INTERRUPTED, EXIT_UNFORESEEN, EdgeclfError


class _Interrupted(Exception):
    """Ctrl-C during a verb."""


class _ReaderGone(Exception):
    """The reader of our output went away, as with `| head`."""


class _Program(TyperGroup):
    """Keeps Ctrl-C and a closed pipe from Typer, which ends them with exit codes that differ between its versions."""

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt as error:
            raise _Interrupted from error
        except BrokenPipeError as error:
            raise _ReaderGone from error


app = typer.Typer(
    name="edgeclf",
    cls=_Program,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    help="From a folder of pictures to an image classifier that runs live on a small board.",
    context_settings={"help_option_names": ["-h", "--help"]},
)

TRAIN, DEVICE, ABOUT = "On the training machine", "On the device and anywhere", "What there is"

app.command(rich_help_panel=TRAIN)(train.quickstart)
app.command(rich_help_panel=TRAIN)(train.train)
app.command(rich_help_panel=TRAIN)(export.export)
app.command(rich_help_panel=TRAIN)(report.report)
app.command(rich_help_panel=DEVICE)(measure.predict)
app.command("run", rich_help_panel=DEVICE)(live.run)
app.command(rich_help_panel=DEVICE)(measure.evaluate)
app.command(rich_help_panel=DEVICE)(measure.bench)
app.command(rich_help_panel=ABOUT)(info.inspect)
app.command(rich_help_panel=ABOUT)(info.models)
app.command(rich_help_panel=ABOUT)(info.devices)


def _version(wanted: bool) -> None:
    if wanted:
        from importlib.metadata import version

        typer.echo(f"edgeclf {version('edgeclf')}")
        raise typer.Exit


@app.callback()
def _options(
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")] = False,
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version and exit.")
    ] = False,
) -> None:
    if debug:
        os.environ["EDGECLF_DEBUG"] = "1"


def main() -> None:
    """Run the program and exit; see `edgeclf.core.errors` for the exit codes."""
    try:
        try:
            app()
        finally:
            sys.stdout.flush()
    except EdgeclfError as error:
        if os.environ.get("EDGECLF_DEBUG"):
            raise
        _complain(str(error))
        sys.exit(error.exit_code)
    except (_Interrupted, KeyboardInterrupt):
        _complain("interrupted")
        sys.exit(EXIT_INTERRUPTED)
    except (_ReaderGone, BrokenPipeError):
        # Nothing is left to say to it; what Python still holds back for it goes nowhere.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(0)
    except Exception as error:
        if os.environ.get("EDGECLF_DEBUG"):
            raise
        _complain(f"unforeseen {type(error).__name__}: {error}; run again as: edgeclf --debug …")
        sys.exit(EXIT_UNFORESEEN)


def _complain(message: str) -> None:
    print(f"edgeclf: {' '.join(message.split())}", file=sys.stderr)
