"""Put a classifier on a board: check, copy, install, verify there, switch; until then what ran before goes on."""

from __future__ import annotations

import hashlib
import json
import shlex
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from edgeclf.core.bundle import read_bundle
from edgeclf.core.devices import DeviceProfile
from edgeclf.core.errors import BoardError, ConfigError, EdgeclfError, ModelError, QualityError, StorageError
from edgeclf.core.files import sha256
from edgeclf.core.live_settings import LiveSettings
from edgeclf.core.progress import Bar
from edgeclf.core.text import printable
from edgeclf.host.deploy import scripts, wheelhouse
from edgeclf.host.deploy import settings as deploy_settings
from edgeclf.host.deploy import unit as deploy_unit
from edgeclf.host.deploy.board import COPY_MB, INSTALL_MB, Facts, check, look, profile_for
from edgeclf.host.deploy.ssh import Done, Remote
from edgeclf.host.deploy.wheel import own_wheel
from edgeclf.host.deploy.wheelhouse import Wheelhouse

FOLDER = "edgeclf"  # in the home folder there
STEP_SECONDS, INSTALL_SECONDS, COPY_SECONDS = 180.0, 1800.0, 3600.0
Tell = Callable[[str, float], None]
"""Called as `tell(what was done, seconds it took)`, once a step."""


@dataclass(frozen=True)
class Wanted:
    """What to put where. `settings` are those in `config_file`; `wheels` makes the board need no index; `secrets` is a file
    with lines of NAME=VALUE for the service; `wheel` is edgeclf's own, made from what is installed here when None."""

    file: Path
    name: str = deploy_unit.DEFAULT_NAME
    config_file: Path | None = None
    settings: LiveSettings = field(default_factory=LiveSettings)
    extras: tuple[str, ...] = ()
    wheels: Wheelhouse | None = None
    wheel: Path | None = None
    service: bool = False
    secrets: Path | None = None
    profile: DeviceProfile | None = None
    python: str = "python3"
    measure: bool = True
    dry_run: bool = False


@dataclass(frozen=True)
class Deployed:
    """What stands there now, and what was measured there; `changed` is false when that release ran already."""

    board: Facts
    profile: str
    release: str
    changed: bool
    verified: str
    bench: dict[str, Any] | None
    doctor: tuple[str, ...]
    service: str
    warnings: tuple[str, ...]

    @property
    def state(self) -> str:
        """Of the release, after its name."""
        return "is current" if self.changed else "was current already"

    def to_json(self) -> dict[str, Any]:
        """For the file with the figures."""
        return asdict(self)


@dataclass(frozen=True)
class Plan:
    """Where things go on the board, named by what they are made of, so that the same is never made twice."""

    root: str
    env: str
    key: str
    release: str
    file: str

    @property
    def new(self) -> str:
        """The folder of the release while it is not whole."""
        return f"{self.root}/releases/.new-{self.release}"

    @property
    def program(self) -> str:
        """edgeclf in the environment."""
        return f"{self.root}/envs/{self.env}/bin/edgeclf"

    def in_release(self, release: str, name: str) -> str:
        """A file of a whole release."""
        return f"{self.root}/releases/{release}/{name}"


@dataclass(frozen=True)
class State:
    """What a board holds under a name: the current release and its key, whole environments, wheels by SHA-256."""

    current: str = ""
    key: str = ""
    envs: tuple[str, ...] = ()
    wheels: frozenset[str] = frozenset()


class Deploy:
    """One deploy to one board; `run` does all of it."""

    def __init__(self, remote: Remote, name: str, wanted: Wanted, tell: Tell, bar: Bar, warn: Callable[[str], None]) -> None:
        self.remote, self.name, self.wanted, self.bar = remote, name, wanted, bar
        self._tell, self._warn = tell, warn
        self._warnings: list[str] = []
        self.second: Path | None = None  # a model of the settings, to be carried along
        self._since = time.monotonic()

    def run(self) -> Deployed:
        """Raises ConfigError, ModelError, QualityError, StorageError or BoardError; what ran there before still does then."""
        wanted = self.wanted
        read_bundle(wanted.file)  # an altered file is refused before anything is sent
        self.second = deploy_settings.second_model(wanted.settings, wanted.config_file, wanted.file)
        facts, profile = self._look()
        if self.second is None:
            self._check_second()
        with tempfile.TemporaryDirectory(prefix="edgeclf-") as made:
            own = self._own_wheel(Path(made))
            plan = plan_of(wanted, facts, own, self.second)
            state = self._state(plan)
            if plan.env not in state.envs and facts.free_mb < INSTALL_MB:
                check(facts, self.name, profile, INSTALL_MB)
            if wanted.service:
                self._may_install_service()
            self._environment(plan, state, facts, own)
            release = self._release(plan, state, Path(made))
            verified = self._verify(plan, state, release)
        bench, doctor = (self._measure(plan, release), self._doctor(plan)) if wanted.measure else (None, ())
        if release != state.current:
            self._change("switch to the new release", scripts.SWITCH, plan.root, release)
        if wanted.service:
            self._service(plan, state, release, facts, profile)
        if release != state.current:
            kept = wanted.wheels.wheels if wanted.wheels else ()
            self._change("keep the release before, remove older ones", scripts.PRUNE, plan.root, state.current, *kept)
        unit = f"edgeclf-{wanted.name}.service" if wanted.service else ""
        changed, label = release != state.current, profile.name if profile else ""
        return Deployed(facts, label, release, changed, verified, bench, doctor, unit, tuple(self._warnings))

    def _look(self) -> tuple[Facts, DeviceProfile | None]:
        facts = look(self.remote, self.name, self.wanted.python)
        profile = profile_for(facts, self.wanted.profile)
        for message in check(facts, self.name, profile, COPY_MB):
            self.warn(message)
        wheels = self.wanted.wheels
        if wheels is not None:
            machine = wheelhouse.OLD_MACHINE if facts.old else facts.machine
            if (wheels.target.machine, wheels.target.python) != (machine, facts.python_minor):
                raise ConfigError(
                    f"{wheels.folder}: wheels for {wheels.target.machine} and Python {wheels.target.python}, but {self.name} is "
                    f"{machine} with Python {facts.python_minor}; make others: edgeclf wheelhouse "
                    f"{profile.name if profile else 'pi4'} --python {facts.python_minor}{' --bits 32' if facts.old else ''}"
                )
            missing = set(self.wanted.extras) - set(wheels.extras)
            if missing and "live" not in wheels.extras:
                raise ConfigError(f"{wheels.folder}: made without {', '.join(sorted(missing))}; make it again with --with")
        elif facts.old:
            raise ConfigError(
                f"{self.name}: a 32-bit system, which no index serves completely; make its wheels first: "
                "edgeclf wheelhouse pi4 --bits 32, then deploy with --offline"
            )
        self.step(f"looked at {self.name}: {facts.in_words()}{f' ({profile.name})' if profile else ''}")
        if facts.old:
            self._must("check apt's numpy and OpenCV", self.remote.run(scripts.OLD_SYSTEM, self.wanted.python))
        return facts, profile

    def _check_second(self) -> None:
        named = self.wanted.settings.compare.file
        if Path(named).is_absolute() and self.remote.run('test -r "$1"', named).code:
            raise ConfigError(f"{self.name}: compare.file = {printable(named)!r}: no such file, here or there")

    def _own_wheel(self, folder: Path) -> Path:
        wanted = self.wanted
        own = wanted.wheel or (wanted.wheels.first("edgeclf") if wanted.wheels else own_wheel(folder))
        self.step(f"took {own.name}, {own.stat().st_size:,} bytes")
        return own

    def _state(self, plan: Plan) -> State:
        done = self.remote.run(scripts.STATE_ONLY if self.wanted.dry_run else scripts.STATE, plan.root, seconds=STEP_SECONDS)
        self._must("look at what is there", done)
        state = state_of(done.out)
        what = (
            f"release {printable(state.current)} runs there"
            if state.current
            else f"nothing called {self.wanted.name} is there yet"
        )
        self.step(what)
        return state

    def _may_install_service(self) -> None:
        done = self.remote.run(scripts.MAY_SUDO)
        if done.code == 3:
            raise ConfigError(f"{self.name}: no systemd there, so no service; deploy without --service")
        if done.code:
            raise ConfigError(
                f"{self.name}: sudo asks for a password there, so no service can be installed; as an administrator there, once: "
                'echo "$USER ALL=(ALL) NOPASSWD: ALL" | sudo tee /etc/sudoers.d/010_edgeclf; or deploy without --service, and '
                "install what 'edgeclf service' prints"
            )

    def _environment(self, plan: Plan, state: State, facts: Facts, own: Path) -> None:
        if plan.env in state.envs:
            self.step(f"environment {plan.env} is there already")
            return
        wheels = self.wanted.wheels
        folder, own_there = f"{plan.root}/wheels", f"{plan.root}/wheels/{plan.env}/{own.name}"
        self._copy({own: own_there} | ({} if wheels is None else _carried(wheels, folder)), state.wheels)
        pip = f"{folder}/{wheels.first('pip').name}" if wheels else ""
        system = "yes" if facts.old or deploy_unit.uses_picamera(self.wanted.settings) else "no"
        if wheels is not None:
            what = [there for path, there in _carried(wheels, folder).items() if path.name[:4] != "pip-"]
        else:
            target = wheelhouse.Target(facts.machine, facts.python_minor, int(facts.glibc.split(".")[1]))
            what = wheelhouse.board_needs(own, target, self.wanted.extras)
        arguments = [f"{plan.root}/envs/{plan.env}", self.wanted.python, system, pip, own_there, *what]
        self._change(f"install into environment {plan.env}", scripts.INSTALL, *arguments, seconds=INSTALL_SECONDS)

    def _copy(self, wanted: dict[Path, str], there: frozenset[str]) -> None:
        missing = {path: target for path, target in wanted.items() if f"{sha256(path)}  {target}" not in there}
        total = sum(path.stat().st_size for path in missing)
        with self.bar("copying wheels") as report:
            for number, (path, target) in enumerate(missing.items()):
                report(number, len(missing))
                self._put(path, target)
        verb = "would copy" if self.wanted.dry_run else "copied"
        self.step(
            f"{verb} {len(missing)} of {len(wanted)} wheels, {total / 1e6:.1f} MB"
            + ("; the others are there" if len(missing) < len(wanted) else "")
        )

    def _put(self, path: Path, target: str, mode: str = "0644") -> None:
        if self.wanted.dry_run:
            self._tell(f"would run: ssh … {shlex.join(['sh', '-c', 'PUT', 'sh', target])} <{path}", 0.0)
            return
        done = self.remote.run(scripts.PUT, target, sha256(path), mode, stdin=path, seconds=COPY_SECONDS)
        self._must(f"copy {path.name}", done)

    def _release(self, plan: Plan, state: State, made: Path) -> str:
        if state.key == plan.key:
            self.step(f"release {state.current} holds the same file and settings")
            return state.current
        self._put(self.wanted.file, f"{plan.new}/{plan.file}")
        if self.wanted.config_file:
            self._put(self._settings(plan, made) or self.wanted.config_file, f"{plan.new}/live.toml")
        self._quiet("seal the release", scripts.SEAL, plan.new, plan.release, plan.key, plan.env)
        verb = "would copy" if self.wanted.dry_run else "copied"
        self.step(f"{verb} {self.wanted.file.name}, {self.wanted.file.stat().st_size:,} bytes, as release {plan.release}")
        return plan.release

    def _settings(self, plan: Plan, made: Path) -> Path | None:
        """Carry the second model to the release; the file of the settings that name it there, None where none is carried."""
        if self.second is None:
            return None
        name = f"compare-{fit_for_a_name(self.second.name)}"
        self._put(self.second, f"{plan.new}/{name}")
        path = made / "live.toml"
        path.write_text(deploy_settings.there(self.wanted.settings, plan.in_release(plan.release, name)), encoding="utf-8")
        self.step(f"{'would copy' if self.wanted.dry_run else 'copied'} {self.second.name}, the model to compare with")
        return path

    def _verify(self, plan: Plan, state: State, release: str) -> str:
        file = plan.in_release(release, plan.file)
        if self.wanted.dry_run:
            self._would("verify", scripts.VERIFY, plan.program, file)
            return ""
        done = self.remote.run(scripts.VERIFY, plan.program, file, seconds=STEP_SECONDS)
        if done.code:
            said = done.last_line.removeprefix("edgeclf: ").replace(file, self.wanted.file.name)
            if release != state.current:
                self.remote.run('rm -rf "$1"', plan.in_release(release, ""), seconds=STEP_SECONDS)
            raise _kind(done)(f"{self.name}: verify failed there: {said}; {_still(state)}")
        verified = done.last_line.replace(file, self.wanted.file.name)
        self.step(f"verified there: {verified}")
        return verified

    def _measure(self, plan: Plan, release: str) -> dict[str, Any] | None:
        file = plan.in_release(release, plan.file)
        if self.wanted.dry_run:
            self._would("bench", scripts.BENCH, plan.program, file)
            return None
        done = self.remote.run(scripts.BENCH, plan.program, file, seconds=STEP_SECONDS)
        try:
            found = json.loads(done.out) if done.code == 0 else None
            json.dumps(found, allow_nan=False)  # what is no number in JSON could not be kept
        except ValueError:
            found = None
        if not isinstance(found, dict):
            self.warn(f"bench failed on {self.name}: {done.last_line}")
            return None
        self.step("measured there with bench")
        return {**found, "board": self.name.rpartition("@")[2]}

    def _doctor(self, plan: Plan) -> tuple[str, ...]:
        if self.wanted.dry_run:
            self._would("doctor", scripts.DOCTOR, plan.program)
            return ()
        done = self.remote.run(scripts.DOCTOR, plan.program, seconds=STEP_SECONDS)
        lines = tuple(printable(line.rstrip())[:400] for line in done.out.splitlines()[:100] if line.strip())
        self.step(f"asked doctor there: {'all well' if done.code == 0 else 'it found something'}")
        return lines

    def _service(self, plan: Plan, state: State, release: str, facts: Facts, profile: DeviceProfile | None) -> None:
        wanted = self.wanted
        current = f"{plan.root}/current"
        service = deploy_unit.Service(
            wanted.name,
            f"{current}/env/bin/edgeclf",
            f"{current}/{plan.file}",
            f"{current}/live.toml" if wanted.config_file else None,
            (plan.root,),
            facts.groups,
            deploy_unit.memory_cap(wanted.settings, profile.budget.memory_mb if profile else None),
            "deploy",
        )
        if not facts.capped:
            self.warn(
                f"the memory cap has no effect on {self.name} until 'cgroup_enable=memory cgroup_memory=1' stands in "
                "/boot/firmware/cmdline.txt and it was restarted"
            )
        with tempfile.TemporaryDirectory(prefix="edgeclf-") as made:
            unit = Path(made) / service.unit
            unit.write_text(deploy_unit.text(service, wanted.settings), encoding="utf-8")
            self._put(unit, f"{plan.root}/{service.unit}")
        if wanted.secrets and not wanted.dry_run:
            done = self.remote.run(
                scripts.SECRETS, wanted.name, str(wanted.secrets.stat().st_size), stdin=wanted.secrets, seconds=STEP_SECONDS
            )
            self._must("copy the secrets", done)
            self.step(f"copied the secrets to /etc/edgeclf/{wanted.name}.env, for root alone")
        arguments = f"{plan.root}/{service.unit}", service.unit
        if wanted.dry_run:
            self._would("service", scripts.SERVICE, *arguments)
            return
        done = self.remote.run(scripts.SERVICE, *arguments, seconds=STEP_SECONDS + 120)
        if done.code:
            self._back(plan, state, release, arguments)
            raise BoardError(f"{self.name}: {service.unit} does not start: {done.last_line}; {_still(state)}")
        self.step(f"{service.unit} is installed, enabled and runs; its words: journalctl -u {service.unit} -f")

    def _back(self, plan: Plan, state: State, release: str, arguments: tuple[str, str]) -> None:
        """To the release before, and its service; without one, nothing is left running."""
        if state.current and state.current != release:
            self.remote.run(scripts.SWITCH, plan.root, state.current, seconds=STEP_SECONDS)
            self.remote.run(scripts.SERVICE, *arguments, seconds=STEP_SECONDS + 120)
        elif not state.current:
            self.remote.run(f'{scripts.SUDO}; $s systemctl disable --now "$1"', arguments[1], seconds=STEP_SECONDS)
            self.remote.run('rm -rf "$1/current" "$1/releases"', plan.root, seconds=STEP_SECONDS)

    def _change(self, what: str, script: str, *arguments: str, seconds: float = STEP_SECONDS) -> None:
        self._quiet(what, script, *arguments, seconds=seconds)
        if not self.wanted.dry_run:
            self.step(what)

    def _quiet(self, what: str, script: str, *arguments: str, seconds: float = STEP_SECONDS) -> None:
        if self.wanted.dry_run:
            self._would(what, script, *arguments)
        else:
            self._must(what, self.remote.run(script, *arguments, seconds=seconds))

    def _would(self, what: str, script: str, *arguments: str) -> None:
        lines = script.strip().replace("\n", "\n    ")
        self._tell(f"would {what}: sh -c '…' sh {shlex.join(arguments)}\n    {lines}", 0.0)

    def _must(self, what: str, done: Done) -> None:
        if done.code:
            raise _kind(done)(f"{self.name}: cannot {what}: {done.last_line.removeprefix('edgeclf: ')}")

    def warn(self, message: str) -> None:
        """Something that a person should know, which is kept with the figures."""
        self._warnings.append(message)
        self._warn(message)

    def step(self, what: str) -> None:
        """A line for what was done since the last one."""
        now = time.monotonic()
        self._tell(what, now - self._since)
        self._since = now


def plan_of(wanted: Wanted, facts: Facts, own: Path, second: Path | None = None) -> Plan:
    """Names from contents: another wheel, Python or extra is another environment; another file or setting another release."""
    packages = sorted(wanted.wheels.wheels.values()) if wanted.wheels else ["index"]
    system = deploy_unit.uses_picamera(wanted.settings)
    env = _short(sha256(own), facts.python, wanted.python, str(facts.old), str(system), *wanted.extras, *packages)
    settings = wanted.config_file.read_bytes().decode("utf-8") if wanted.config_file else ""
    key = _short(env, sha256(wanted.file), settings, *([sha256(second)] if second else []))
    release = f"{datetime.now(UTC):%Y%m%dT%H%M%S}-{key[:8]}"
    return Plan(f"{facts.home}/{FOLDER}/{wanted.name}", env, key, release, fit_for_a_name(wanted.file.name))


def state_of(text: str) -> State:
    """What scripts.STATE said."""
    state = State()
    for line in text.splitlines():
        key, _, value = line.partition("=")
        if key == "env":
            state = replace(state, envs=(*state.envs, value))
        elif key == "wheel":
            state = replace(state, wheels=state.wheels | {value})
        elif key == "current":
            state = replace(state, current=value)
        elif key == "key":
            state = replace(state, key=value)
    return state


def _carried(wheels: Wheelhouse, folder: str) -> dict[Path, str]:
    """Each wheel but edgeclf's own, and where it goes."""
    return {wheels.folder / name: f"{folder}/{name}" for name in wheels.wheels if not name.startswith("edgeclf-")}


def _short(*parts: str) -> str:
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:12]


def _still(state: State) -> str:
    return f"release {printable(state.current)} is still current" if state.current else "nothing was put in use"


def _kind(done: Done) -> type[EdgeclfError]:
    """The error that a failed step there is here."""
    if "No space left on device" in done.err or "Read-only file system" in done.err:
        return StorageError
    return {QualityError.exit_code: QualityError, ModelError.exit_code: ModelError}.get(done.code, BoardError)


def short_name(target: str) -> str:
    """The host in `user@host`, fit for a file's name."""
    return fit_for_a_name(target.rpartition("@")[2])


def fit_for_a_name(text: str) -> str:
    """`text` with a dash for whatever a shell or a unit file might read in its own way."""
    return "".join(c if c.isascii() and (c.isalnum() or c in "-._") else "-" for c in text).lstrip("-.") or "x"
