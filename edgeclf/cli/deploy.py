"""The verbs that bring a classifier to a board: wheelhouse, deploy, service."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from edgeclf.cli.common import print_json, progress, say
from edgeclf.cli.options import Json
from edgeclf.core.errors import ConfigError

if TYPE_CHECKING:
    from edgeclf.core.live_settings import LiveSettings
    from edgeclf.host.deploy.deploy import Wanted
    from edgeclf.host.deploy.ssh import Address

With = Annotated[
    list[str] | None,
    typer.Option(
        "--with",
        metavar="EXTRAS",
        help="Also what these need: web, mqtt, metrics, gpio, live, onnx; window needs a desktop there.",
        show_default=False,
    ),
]
Wheel = Annotated[Path | None, typer.Option(help="edgeclf's own wheel.", show_default="made from what is installed here")]
Config = Annotated[Path | None, typer.Option(help="Settings of the board for 'edgeclf run', as TOML.", show_default=False)]
Name = Annotated[str, typer.Option(help="Of the folder and of the unit there; several can live on one board.")]


def wheelhouse(
    board: Annotated[
        str, typer.Argument(metavar="BOARD", help="pi3, pi4, pi5, zero2w, a name from 'edgeclf devices', or a .toml.")
    ],
    out: Annotated[Path | None, typer.Option(help="The folder.", show_default="wheelhouse-BOARD")] = None,
    python: Annotated[
        str | None, typer.Option(metavar="3.X", help="Of the board: 3.11 with bookworm, 3.13 with trixie.", show_default="3.13")
    ] = None,
    bits: Annotated[int, typer.Option(metavar="64|32", help="Of the board's system.")] = 64,
    extras: With = None,
    wheel: Wheel = None,
    upgrade: Annotated[bool, typer.Option("--upgrade", help="Ask the index again although the folder is whole.")] = False,
    as_json: Json = False,
) -> None:
    """Download every wheel that a board needs, so that it can be set up without a package index.

    The folder appears whole or not at all, with a manifest of checksums. A 32-bit system gets tflite-runtime 2.14 for
    Python 3.11, and takes numpy and OpenCV from apt.

    Example: edgeclf wheelhouse pi4 --python 3.11 --with web,mqtt
    """
    from edgeclf.host.deploy import wheelhouse as house

    if bits not in (32, 64):
        raise ConfigError(f"--bits {bits}: expected 64 or 32")
    target = house.target_of(house.profile_of(board), python, bits)
    folder = out or Path(f"wheelhouse-{Path(board).stem}")
    wanted = house.checked_extras(extras or ())
    say(f"downloading wheels for {target.machine}, Python {target.python}, glibc 2.{target.glibc} from your package index")
    with progress("downloading wheels") as report:
        made = house.make(folder, target, wanted, wheel, report, upgrade)
    size = sum((folder / name).stat().st_size for name in made.wheels)
    if as_json:
        print_json(
            {"folder": str(folder), "machine": target.machine, "python": target.python, "bytes": size, "wheels": made.wheels}
        )
    else:
        print(f"{folder}: {len(made.wheels)} wheels, {size / 1e6:.1f} MB, for {target.machine} with Python {target.python}")


def deploy(
    first: Annotated[
        str,
        typer.Argument(
            metavar="USER@HOST|FILE", help="The board as ssh knows it; with --inventory the model alone.", show_default=False
        ),
    ],
    second: Annotated[
        str | None,
        typer.Argument(metavar="FILE", help="An exported model, or one that comes with edgeclf.", show_default=False),
    ] = None,
    inventory: Annotated[
        Path | None,
        typer.Option(metavar="FILE.toml", help="Many boards at once, listed in this file.", show_default=False),
    ] = None,
    group: Annotated[
        list[str] | None, typer.Option(metavar="NAMES", help="Only the boards of these groups.", show_default=False)
    ] = None,
    only: Annotated[list[str] | None, typer.Option(metavar="HOSTS", help="Only these boards.", show_default=False)] = None,
    at_once: Annotated[int | None, typer.Option(help="How many boards side by side.", min=1, max=64, show_default="4")] = None,
    report: Annotated[
        Path | None,
        typer.Option(metavar="RUN", help="Then compare all boards with the full model of that run.", show_default=False),
    ] = None,
    service: Annotated[bool, typer.Option("--service", help="Install a systemd unit that runs it from now on.")] = False,
    config: Config = None,
    name: Name = "live",
    device: Annotated[str | None, typer.Option(help="The board's profile.", show_default="what the board says it is")] = None,
    extras: With = None,
    offline: Annotated[bool, typer.Option("--offline", help="The board asks no index; needs --wheelhouse.")] = False,
    wheels: Annotated[
        Path | None, typer.Option("--wheelhouse", help="A folder that 'edgeclf wheelhouse' made.", show_default=False)
    ] = None,
    wheel: Wheel = None,
    secrets: Annotated[
        Path | None,
        typer.Option(
            help="Lines of NAME=VALUE, as EDGECLF_MQTT_PASSWORD=…, for the service; only root reads them.", show_default=False
        ),
    ] = None,
    port: Annotated[int | None, typer.Option(help="Of ssh there.", min=1, max=65535, show_default="ssh's own choice")] = None,
    ssh: Annotated[str, typer.Option(help="The ssh program, with options.")] = "ssh",
    python: Annotated[str, typer.Option(help="The interpreter there.")] = "python3",
    out: Annotated[
        Path | None,
        typer.Option(help="Where the figures go.", show_default="FILE's name with .HOST.json or .INVENTORY.json, beside it"),
    ] = None,
    measure: Annotated[bool, typer.Option("--measure/--no-measure", help="Run bench and doctor there after verify.")] = True,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Look at the board, and show what would be run there.")] = False,
    as_json: Json = False,
) -> None:
    """Put a classifier on a board over your own ssh, verify and measure it there, and keep what ran before until it is proved.

    The board is checked against its profile; an environment is made with this very edgeclf; the file arrives whole or not at
    all; 'verify', 'bench' and 'doctor' run there. A second run changes only what differs. Where 'verify' or the service
    fails, the release before stays, or becomes again, the current one.

    With --inventory many boards get it side by side; one that fails leaves the others alone. What a board's entry leaves
    out comes from the options: host, user, port, profile, groups, service, config, secrets, wheelhouse, extras, python,
    ssh_options.

    Exit codes: 2 this board cannot, 4 or 7 verify failed there, 8 its disk refused, 9 unreachable, another step failed, or a
    board of several failed.

    Example: edgeclf deploy pi@shed.local runs/photos/photos-int8.tflite --service --config shed.toml
    Example: edgeclf deploy runs/photos/photos-int8.tflite --inventory devices.toml --group barn
    """
    from edgeclf.host.deploy import deploy as putting
    from edgeclf.host.deploy import unit as deploy_unit
    from edgeclf.host.deploy import wheelhouse as house
    from edgeclf.host.deploy.ssh import Address
    from edgeclf.runtime import shipped

    if (second is None) != (inventory is not None):
        given = f"{first} {second or ''}".strip()
        raise ConfigError(f"deploy {given}: expected USER@HOST FILE, or FILE --inventory devices.toml")
    if inventory is None and (group or only or at_once or report):
        raise ConfigError("--group, --only, --at-once and --report are for many boards; add --inventory devices.toml")
    if offline and wheels is None and inventory is None:
        raise ConfigError("--offline needs --wheelhouse DIR; make one with: edgeclf wheelhouse pi4 --out DIR")
    if secrets is not None:
        _check_secrets(secrets, service or inventory is not None)
    if python.startswith("-"):
        raise ConfigError(f"--python {python}: expected the name or path of an interpreter")
    file = second or first
    path = shipped.resolve(file)
    wanted = putting.Wanted(
        file=path,
        name=deploy_unit.checked_name(name),
        config_file=config,
        settings=_settings(config),
        extras=house.checked_extras(extras or ()),
        wheels=house.read(wheels) if wheels else None,
        wheel=wheel,
        service=service,
        secrets=secrets,
        profile=house.profile_of(device) if device else None,
        python=python,
        measure=measure,
        dry_run=dry_run,
    )
    words_of_ssh = tuple(shlex.split(ssh))
    beside = Path() if shipped.is_name(file) else path.parent
    if inventory is None:
        figures = out or beside / f"{path.stem}.{putting.short_name(first)}.json"
        _deploy_one(first, file, wanted, Address(first, port, words_of_ssh), figures, as_json)
        return
    from edgeclf.cli.deploy_fleet import Order, deploy_fleet
    from edgeclf.host.deploy.fleet import AT_ONCE

    figures = out or beside / f"{path.stem}.{inventory.stem}.json"
    order = Order(inventory, group or (), only or (), at_once or AT_ONCE, offline, figures, report, as_json)
    deploy_fleet(order, wanted, words_of_ssh, port)


def _deploy_one(target: str, file: str, wanted: Wanted, address: Address, figures: Path, as_json: bool) -> None:
    from edgeclf.cli.deploy_figures import bench_in_words, report_beside, report_command
    from edgeclf.core.files import sha256, write_json
    from edgeclf.host.deploy.deploy import Deploy
    from edgeclf.host.deploy.ssh import connected

    with connected(address) as remote:
        done = Deploy(remote, target, wanted, _tell, progress, lambda message: say(f"warning: {message}")).run()
    if wanted.dry_run:
        say("nothing was changed")
        return
    write_json(figures, {"file": file, "sha256": sha256(wanted.file), **done.to_json()})
    if done.bench:
        write_json(report_beside(figures), done.bench)
    if as_json:
        print_json({"figures": str(figures), **done.to_json()})
        return
    print(done.verified)
    for line in bench_in_words(done.bench):
        print(line)
    for line in done.doctor:
        print(f"doctor: {line}")
    print(f"{target}: release {done.release} {done.state}; figures in {figures}")
    if done.bench:
        print(f"into a report beside the full model's figures: {report_command(wanted.file, [report_beside(figures)])}")


def service(
    file: Annotated[Path, typer.Argument(help="The exported model, where the board has it.", show_default=False)],
    config: Config = None,
    name: Name = "live",
    device: Annotated[str, typer.Option(help="The board's profile, for the memory cap.")] = "raspberry-pi-4",
    show: Annotated[bool, typer.Option("--print", help="Print the unit (the default without --out).")] = False,
    out: Annotated[Path | None, typer.Option(help="Write the unit to this file.", show_default=False)] = None,
) -> None:
    """Print the systemd unit that runs a classifier for months, for this environment; 'deploy --service' installs it by itself.

    Its own user, no capabilities, a read-only system, a memory cap, a watchdog that only labels feed. What it writes goes to
    /var/lib/edgeclf-NAME; passwords come from /etc/edgeclf/NAME.env.

    Example: edgeclf service photos-int8.tflite --config shed.toml --out edgeclf-live.service
    """
    import sys

    from edgeclf.core.files import write_text
    from edgeclf.host.deploy import unit as deploy_unit
    from edgeclf.host.deploy import wheelhouse as house
    from edgeclf.runtime import shipped

    settings, profile = _settings(config), house.profile_of(device)
    program, model = Path(sys.executable).parent / "edgeclf", shipped.resolve(file).absolute()
    seen = tuple(dict.fromkeys(str(p.parent) for p in (program.parent, model, *([config.absolute()] if config else []))))
    unit = deploy_unit.Service(
        name, str(program), str(model), str(config.absolute()) if config else None, seen, deploy_unit.groups_here(),
        deploy_unit.memory_cap(settings, profile.budget.memory_mb),
    )  # fmt: skip
    text = deploy_unit.text(unit, settings)
    if out:
        write_text(out, text)
        say(f"wrote {out}; install it: sudo install -m 0644 {shlex.quote(str(out))} /etc/systemd/system/{unit.unit} && "
            f"sudo systemctl daemon-reload && sudo systemctl enable --now {unit.unit}")  # fmt: skip
    if show or not out:
        print(text, end="")


def _settings(config: Path | None) -> LiveSettings:
    from edgeclf.core.live_settings import LiveSettings, read_settings

    return read_settings(config) if config else LiveSettings()


def _check_secrets(secrets: Path, service: bool) -> None:
    from edgeclf.host.deploy.unit import check_secrets

    if not service:
        raise ConfigError("--secrets are for the service; add --service")
    check_secrets(secrets)


def _tell(what: str, seconds: float) -> None:
    say(f"{seconds:6.1f} s  {what}")
