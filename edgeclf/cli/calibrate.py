"""The verb calibrate: temperature and limits, fitted on validation pictures, into the model card."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from edgeclf.cli.common import console, print_json, progress, say
from edgeclf.cli.options import Json
from edgeclf.core.errors import ConfigError, DataError

if TYPE_CHECKING:
    from edgeclf.core.calibrate import Threshold
    from edgeclf.core.unknown import Turned
    from edgeclf.host.understand.recalibrate import Fitted, UnknownWish, Wish

FEW_ANSWERS = 20
KEEP = 0.95
MEASURES = ("probability", "margin", "energy")


def calibrate(
    model: Annotated[
        Path, typer.Argument(metavar="FILE|RUN", help="An exported file, or a run with all its files.", show_default=False)
    ],
    data: Annotated[
        str | None, typer.Argument(help="Data with a validation part, or new pictures.", show_default="the run's own")
    ] = None,
    thresholds: Annotated[
        str, typer.Option(metavar="none|f1|precision=P", help="What a class must reach, else the answer is 'unknown'.")
    ] = "none",
    temperature: Annotated[bool, typer.Option(help="Fit the temperature that makes probabilities honest, else 1.")] = True,
    unknown_by: Annotated[
        str | None,
        typer.Option(
            metavar="|".join(MEASURES),
            help="Below a limit of this a picture is 'unknown', whatever its class: probability of the likeliest class, its "
            "margin over the second, or energy.",
            show_default="nothing is unknown",
        ),
    ] = None,
    keep: Annotated[
        float | None, typer.Option(help="Share of the right answers that the limit keeps.", show_default=f"{KEEP}")
    ] = None,
    others: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR", help="Pictures that show none of the classes: says how many are turned away.", show_default=False
        ),
    ] = None,
    as_json: Json = False,
) -> None:
    """Make probabilities mean what they say, and set limits below which the answer is unknown; kept in the model card.

    Fitted on the validation part, never on test pictures: measure with `edgeclf evaluate` afterwards. Each file of a run is
    fitted by its own answers. What is not asked for is taken out of the card: limits belong to their temperature.
    `predict`, `run`, `evaluate` and the Python interface use them; a phone library reads the file's own output alone.

    Example: edgeclf calibrate runs/compact-photos --unknown-by energy --keep 0.95 --others street-photos/
    """
    wish, unknown = _wish(thresholds), _unknown_wish(unknown_by, keep, others)
    done: list[Fitted] = []
    from edgeclf.core.bundle import read_bundle
    from edgeclf.host.run import open_run
    from edgeclf.host.understand import recalibrate
    from edgeclf.host.understand.evaluation import home_of, pictures

    def tell(fitted: Fitted) -> None:
        done.append(fitted)
        if not as_json:
            _print(fitted, thresholds, table=len(done) == 1)
        if temperature and not fitted.temperature:
            say(f"note: {fitted.file}: no temperature fits, as when it is right on all these pictures; it stays 1")

    try:
        if model.is_dir():
            run = open_run(model)
            recalibrate.calibrate_run(run, pictures(data, run, model), temperature, wish, progress, tell, unknown)
        else:
            card = read_bundle(model).card if data is None else None
            catalogue = pictures(data, home_of(model, card) if card else None, model)
            tell(recalibrate.calibrate_file(model, catalogue, temperature, wish, progress, unknown))
    finally:
        if as_json and done:
            wanted = {"model": str(model), "thresholds": thresholds, "unknown_by": unknown_by}
            print_json({**wanted, "fitted": [fitted.to_json() for fitted in done]})
    if not as_json:
        print(f"fitted on {done[0].which}; to measure on held-out pictures: edgeclf evaluate {shlex.quote(str(model))}")


def _wish(text: str) -> Wish:
    if text in ("none", "f1"):
        return text  # type: ignore[return-value]
    name, _, number = text.partition("=")
    try:
        value = float(number)
    except ValueError:
        value = 0.0
    if name != "precision" or not 0 < value <= 1:
        raise ConfigError(f"--thresholds {text}: expected none, f1, or precision=P with P above 0 and up to 1, as precision=0.95")
    return value


def _unknown_wish(by: str | None, keep: float | None, others: Path | None) -> UnknownWish | None:
    from edgeclf.cli.common import pictures_in
    from edgeclf.host.understand.recalibrate import UnknownWish

    if by is None:
        if keep is not None or others is not None:
            raise ConfigError(f"{'--keep' if others is None else '--others'} is for --unknown-by; give that too")
        return None
    if by not in MEASURES:
        raise ConfigError(f"--unknown-by {by}: expected one of {', '.join(MEASURES)}")
    if keep is not None and not 0 < keep <= 1:
        raise ConfigError(f"--keep {keep}: must be above 0 and up to 1, as 0.95")
    if others is not None and not others.exists():
        raise DataError(f"{others}: no such folder")
    return UnknownWish(by, keep or KEEP, tuple(pictures_in([others])) if others else ())  # type: ignore[arg-type]


def _print_turned(fitted: Fitted, turned: Turned) -> None:
    rule = turned.rule
    print(
        f"  unknown below {rule.by} {rule.limits[rule.by]:.6g}: keeps {_share(turned.kept, turned.right)} of {turned.right} "
        f"right answers and {_share(turned.wrong_kept, turned.wrong)} of {turned.wrong} wrong ones"
    )
    if turned.others:
        between = turned.others_interval
        areas = ", ".join(f"{name} {area:.3f}" for name, area in turned.auroc.items())
        print(
            f"  turns away {turned.others_turned_away} of {turned.others} other pictures, "
            f"{_share(turned.others_turned_away, turned.others)} (95% interval {between.low:.1%} to {between.high:.1%}); "
            f"AUROC {areas}"
        )
    if fitted.unreadable:
        say(f"note: {fitted.unreadable} of the other pictures cannot be read")
    if turned.right < FEW_ANSWERS:
        say(f"note: {fitted.file}: the limit rests on {turned.right} right answers")


def _share(part: int, whole: int) -> str:
    return f"{part / whole:.1%}" if whole else "none"


def _print(fitted: Fitted, thresholds: str, table: bool) -> None:
    """A line of figures, and the thresholds: as a table for the first of several models, which differ little."""
    before, after, found = fitted.before, fitted.after, fitted.temperature
    value = f"temperature {fitted.card.temperature:.3g}"
    value += f" (95% interval {found.interval.low:.3g} to {found.interval.high:.3g})" if found else ""
    print(f"{fitted.file}: {value}; on {fitted.pictures} pictures ECE {before.ece:.4f} → {after.ece:.4f}, ", end="")
    print(f"NLL {before.nll:.4f} → {after.nll:.4f}")
    if table and fitted.thresholds:
        _print_thresholds(fitted, thresholds)
    if fitted.turned:
        _print_turned(fitted, fitted.turned)
    if fitted.answered:
        print(f"  {fitted.answered.coverage:.1%} of these pictures get an answer, {fitted.answered.top1:.1%} of which are right")
    for t in fitted.thresholds:
        if doubt := _doubt(t):
            say(f"note: {fitted.file}: {t.label}: {doubt}")


def _doubt(t: Threshold) -> str:
    """Why not to build on a threshold; empty when there is no reason."""
    if not t.answers:
        return "never the answer on these pictures, so it has no threshold"
    if not t.reached:
        return f"that precision is out of reach; the best is {t.precision:.3f}, at {t.value:.6g}"
    return f"its threshold rests on {t.answers} answers" if t.answers < FEW_ANSWERS else ""


def _print_thresholds(fitted: Fitted, thresholds: str) -> None:
    from rich.table import Table

    table = Table("class", title=f"thresholds, {thresholds}", title_justify="left")
    for head in ("threshold", "precision", "recall", "F1", "answers", "pictures"):
        table.add_column(head, justify="right")
    for t in fitted.thresholds:
        figures = (f"{t.value:.6g}", f"{t.precision:.3f}", f"{t.recall:.3f}", f"{t.f1:.3f}", str(t.answers), str(t.pictures))
        table.add_row(t.label, *figures)
    console().print(table)
