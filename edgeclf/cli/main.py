"""The `edgeclf` program: collects the verbs, and turns every foreseen error into one line and an exit code."""

from __future__ import annotations

import contextlib
import importlib
import os
import sys
from typing import Annotated, Any, NamedTuple

import typer
from typer.core import TyperGroup

from edgeclf.cli import streams
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


TRAIN, DEVICE, ABOUT = "On the training machine", "On the device and anywhere", "What there is"


class _Verb(NamedTuple):
    """Where a verb is: a module of `edgeclf.cli`, and its function, or its `typer.Typer` where it has verbs of its own.

    `parser` is a class of that module, where Typer's own does not do.
    """

    module: str
    name: str
    panel: str
    parser: str | None = None


VERBS = {
    "quickstart": _Verb("train", "quickstart", TRAIN),
    "train": _Verb("train", "train", TRAIN),
    "tune": _Verb("choose", "tune", TRAIN),
    "crossval": _Verb("choose", "crossval", TRAIN),
    "import": _Verb("imports", "import_", TRAIN),
    "compress": _Verb("compress", "compress", TRAIN),
    "export": _Verb("export", "export", TRAIN),
    "optimize": _Verb("optimize", "optimize", TRAIN),
    "debug-quant": _Verb("debug_quant", "debug_quant", TRAIN),
    "report": _Verb("report", "report", TRAIN),
    "probe": _Verb("understand", "probe", TRAIN),
    "compare": _Verb("compare", "compare", TRAIN),
    "predict": _Verb("measure", "predict", DEVICE),
    "classify": _Verb("classify", "classify", DEVICE),
    "explain": _Verb("understand", "explain", DEVICE),
    "run": _Verb("live", "run", DEVICE, "Run"),
    "evaluate": _Verb("evaluate", "evaluate", DEVICE),
    "calibrate": _Verb("calibrate", "calibrate", DEVICE),
    "bench": _Verb("measure", "bench", DEVICE),
    "verify": _Verb("verify", "verify", DEVICE),
    "deploy": _Verb("deploy", "deploy", TRAIN),
    "wheelhouse": _Verb("deploy", "wheelhouse", TRAIN),
    "service": _Verb("deploy", "service", DEVICE),
    "doctor": _Verb("doctor", "doctor", DEVICE),
    "errors": _Verb("data", "errors", TRAIN),
    "data": _Verb("data", "app", ABOUT),
    "inspect": _Verb("info", "inspect", ABOUT),
    "models": _Verb("info", "models", ABOUT),
    "devices": _Verb("info", "devices", ABOUT),
}


def program(asked: str | None = None) -> typer.Typer:
    """The program, with the verb that is asked for, or with all where that is none: a start need not build thirty of them."""
    app = typer.Typer(
        name="edgeclf",
        cls=_Program,
        no_args_is_help=True,
        pretty_exceptions_enable=False,
        help="From a folder of pictures to an image classifier that runs live on a small board.",
        context_settings={"help_option_names": ["-h", "--help"]},
        callback=_options,
    )
    wanted = {asked: VERBS[asked]} if asked and asked in VERBS else VERBS
    for name, verb in wanted.items():
        module = importlib.import_module(f"edgeclf.cli.{verb.module}")
        found = getattr(module, verb.name)
        if isinstance(found, typer.Typer):
            app.add_typer(found, name=name, rich_help_panel=verb.panel)
        else:
            parser = getattr(module, verb.parser) if verb.parser else None
            app.command(name, cls=parser, rich_help_panel=verb.panel)(found)
    return app


def _version(wanted: bool) -> None:
    if wanted:
        from importlib.metadata import version

        typer.echo(f"edgeclf {version('edgeclf')}")
        raise typer.Exit


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
            program(next((word for word in sys.argv[1:] if word != "--debug"), None))()
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
