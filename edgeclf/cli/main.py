"""The `edgeclf` program: collects the verbs, and turns every foreseen error into one line and an exit code."""

from __future__ import annotations

import contextlib
import os
import sys
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from edgeclf.cli import (
    calibrate,
    choose,
    classify,
    compare,
    compress,
    data,
    debug_quant,
    deploy,
    doctor,
    evaluate,
    export,
    imports,
    info,
    live,
    measure,
    optimize,
    report,
    streams,
    train,
    understand,
    verify,
)
from edgeclf.cli.common import say
from edgeclf.core.errors import EXIT_INTERRUPTED, EXIT_UNFORESEEN, EdgeclfError, StorageError


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
app.command(rich_help_panel=TRAIN)(choose.tune)
app.command(rich_help_panel=TRAIN)(choose.crossval)
app.command("import", rich_help_panel=TRAIN)(imports.import_)
app.command(rich_help_panel=TRAIN)(compress.compress)
app.command(rich_help_panel=TRAIN)(export.export)
app.command(rich_help_panel=TRAIN)(optimize.optimize)
app.command("debug-quant", rich_help_panel=TRAIN)(debug_quant.debug_quant)
app.command(rich_help_panel=TRAIN)(report.report)
app.command(rich_help_panel=TRAIN)(understand.probe)
app.command(rich_help_panel=TRAIN)(compare.compare)
app.command(rich_help_panel=DEVICE)(measure.predict)
app.command(rich_help_panel=DEVICE)(classify.classify)
app.command(rich_help_panel=DEVICE)(understand.explain)
app.command("run", cls=live.Run, rich_help_panel=DEVICE)(live.run)
app.command(rich_help_panel=DEVICE)(evaluate.evaluate)
app.command(rich_help_panel=DEVICE)(calibrate.calibrate)
app.command(rich_help_panel=DEVICE)(measure.bench)
app.command(rich_help_panel=DEVICE)(verify.verify)
app.command(rich_help_panel=TRAIN)(deploy.deploy)
app.command(rich_help_panel=TRAIN)(deploy.wheelhouse)
app.command(rich_help_panel=DEVICE)(deploy.service)
app.command(rich_help_panel=DEVICE)(doctor.doctor)
app.command(rich_help_panel=TRAIN)(data.errors)
app.add_typer(data.app, name="data", rich_help_panel=ABOUT)
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
    streams.settle()
    try:
        try:
            app()
        finally:
            sys.stdout.flush()
    except (_Interrupted, KeyboardInterrupt):
        _complain("interrupted")
        sys.exit(EXIT_INTERRUPTED)
    except (_ReaderGone, BrokenPipeError):
        streams.abandon_output()
        sys.exit(0)
    except Exception as error:
        message, code = _foreseen(error)
        if os.environ.get("EDGECLF_DEBUG"):
            _trace(error)
        else:
            _complain(message)
        sys.exit(code)


def _foreseen(error: Exception) -> tuple[str, int]:
    """What to say of an error, and the exit code."""
    if isinstance(error, EdgeclfError):
        return str(error), error.exit_code
    if isinstance(error, OSError) and streams.is_full(error):
        streams.abandon_output()
        return f"standard output: cannot write: {error.strerror}", StorageError.exit_code
    if isinstance(error, OSError) and error.filename is not None:
        return f"{error.filename}: {error.strerror}", StorageError.exit_code
    return f"unforeseen {type(error).__name__}: {error}; run again as: edgeclf --debug …", EXIT_UNFORESEEN


def _trace(error: Exception) -> None:
    import traceback

    with contextlib.suppress(OSError):
        traceback.print_exception(error)


def _complain(message: str) -> None:
    say(f"edgeclf: {' '.join(message.split())}")
