"""Write `locks/*.lock`: the exact versions, transitive ones included, that this environment has installed and tested.

    python tools/lock.py           write the files
    python tools/lock.py --check   exit 1 when they differ from what is installed

Nothing is downloaded. The environments for which the locks are meant (Linux on x86-64 and aarch64, Python 3.11 to 3.13) are
walked one by one, so a package that only some of them need gets a marker, and one that is missing here is an error.
"""

from __future__ import annotations

import argparse
import contextlib
import sys
import tomllib
from collections.abc import Iterator
from importlib.metadata import Distribution, PackageNotFoundError, distribution
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

REPOSITORY = Path(__file__).resolve().parent.parent
PYTHONS = "3.11", "3.12", "3.13"
MACHINES = "x86_64", "aarch64"
HEADER = """\
# {about}
# Written by `make lock` (tools/lock.py) from an installed and tested environment; do not edit.
"""

# The same code without windows, which `make` installs where the libraries of a desktop are missing.
STAND_INS = {"opencv-python": "opencv-python-headless"}

Environment = dict[str, str]


def environments() -> Iterator[Environment]:
    """The marker values of every environment that the locks are for."""
    for python in PYTHONS:
        for machine in MACHINES:
            yield {
                "python_version": python, "python_full_version": f"{python}.0", "platform_machine": machine,
                "sys_platform": "linux", "os_name": "posix", "platform_system": "Linux",
                "implementation_name": "cpython", "platform_python_implementation": "CPython", "extra": "",
            }  # fmt: skip


def closure(requirements: list[str], environment: Environment) -> dict[str, str]:
    """Name → installed version of `requirements` and of all that they need in `environment`.

    Raises SystemExit for a package that is not installed or lies outside a wanted range.
    """
    versions: dict[str, str] = {}
    seen: set[tuple[str, frozenset[str]]] = set()
    waiting = [Requirement(text) for text in requirements]
    while waiting:
        wanted = waiting.pop()
        name, key = canonicalize_name(wanted.name), (canonicalize_name(wanted.name), frozenset(wanted.extras))
        if key in seen or (wanted.marker and not wanted.marker.evaluate(environment)):
            continue
        seen.add(key)
        versions[name] = _installed(wanted)
        waiting += _needs(wanted, environment)
    return versions


def _found(name: str) -> Distribution:
    """The installed package of that name, or its stand-in. Raises SystemExit when there is neither."""
    for candidate in (name, STAND_INS.get(canonicalize_name(name), name)):
        with contextlib.suppress(PackageNotFoundError):
            return distribution(candidate)
    raise SystemExit(f"lock: {name} is not installed here; run: make test")


def _installed(wanted: Requirement) -> str:
    version = _found(wanted.name).version
    if not wanted.specifier.contains(version, prereleases=True):
        raise SystemExit(f"lock: {wanted.name} {version} is installed, but {wanted} is wanted")
    return version


def _needs(wanted: Requirement, environment: Environment) -> list[Requirement]:
    """What that package needs in `environment`, markers already applied."""
    needed = []
    for text in _found(wanted.name).requires or []:
        inner = Requirement(text)
        if inner.marker is None or any(inner.marker.evaluate({**environment, "extra": e}) for e in ("", *wanted.extras)):
            inner.marker = None
            needed.append(inner)
    return needed


def pins(requirements: list[str]) -> dict[str, str]:
    """Name → the line that pins it, with a marker where only some environments need it."""
    found = {tuple(e.values()): (e, closure(requirements, e)) for e in environments()}
    lines = {}
    for name in sorted(set().union(*(versions for _, versions in found.values()))):
        where = [e for e, versions in found.values() if name in versions]
        version = next(versions[name] for _, versions in found.values() if name in versions)
        lines[name] = f"{name}=={version}{_marker(where)}"
    return lines


def _marker(where: list[Environment]) -> str:
    if len(where) == len(PYTHONS) * len(MACHINES):
        return ""
    cases = (f"(python_version == '{e['python_version']}' and platform_machine == '{e['platform_machine']}')" for e in where)
    return " ; " + " or ".join(cases)


def locks() -> dict[str, str]:
    """File name → content."""
    with (REPOSITORY / "pyproject.toml").open("rb") as file:
        table = tomllib.load(file)
    base, extras = table["project"]["dependencies"], table["project"]["optional-dependencies"]
    setup_pins = pins([*table["build-system"]["requires"], "editables"])
    base_pins = pins(base)
    train_pins = pins([*base, *extras["train"]])
    dev_pins = pins([*base, *extras["train"], *extras["dev"]])
    return {
        "setup.lock": _lock("What it takes to install the checkout itself.", [], setup_pins, {}),
        "base.lock": _lock("The base install: what a device needs.", [], base_pins, {}),
        "train.lock": _lock("The training machine.", ["base.lock"], train_pins, base_pins),
        "dev.lock": _lock("Tests and checks.", ["train.lock", "setup.lock"], dev_pins, {**train_pins, **setup_pins}),
    }


def _lock(about: str, includes: list[str], lines: dict[str, str], without: dict[str, str]) -> str:
    own = [line for name, line in lines.items() if name not in without]
    return HEADER.format(about=about) + "".join(f"{line}\n" for line in [*(f"-r {i}" for i in includes), *own])


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--check", action="store_true", help="write nothing; exit 1 when a file differs")
    check = options.parse_args().check
    folder = REPOSITORY / "locks"
    changed = []
    for name, text in locks().items():
        path = folder / name
        if not path.is_file() or path.read_text(encoding="utf-8") != text:
            changed.append(name)
            if not check:
                folder.mkdir(exist_ok=True)
                path.write_text(text, encoding="utf-8")
    print(f"lock: {'differ' if check else 'written'}: {', '.join(changed)}" if changed else "lock: up to date")
    sys.exit(1 if check and changed else 0)


if __name__ == "__main__":
    main()
