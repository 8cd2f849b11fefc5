"""Doctor: whether this machine can run edgeclf; each trouble with its cause and the command that mends it.

    python3 -m edgeclf.runtime.device.doctor

runs it without installing anything, also on a Python that is too old for edgeclf itself.
"""

from __future__ import annotations

import json
import shlex
import sys
from dataclasses import dataclass, replace

from edgeclf.runtime.device.facts import (
    EXTRAS,
    MQTT_PORT,
    OPENCV_WHEELS,
    RUNTIMES,
    SELF_TEST_MODEL,
    WEB_PORT,
    Facts,
    Trial,
    gather,
)
from edgeclf.runtime.device.vitals import complaints

OK, WARNING, FAILING = "ok", "warning", "failing"
OLDEST, NEWEST = (3, 11), (3, 13)  # NEWEST is the last for which LiteRT has been seen to have wheels
LEAST_FREE, LITTLE_FREE = 100 << 20, 500 << 20
LITTLE_MEMORY = 150 << 20
ROUTE_32 = (
    "sudo apt install -y python3-venv python3-numpy python3-opencv && python3 -m venv --system-site-packages ~/edgeclf && "
    "~/edgeclf/bin/pip install typer rich 'tflite-runtime==2.14.0' && ~/edgeclf/bin/pip install --no-deps edgeclf"
)
NEWER_PYTHON = (
    "python3 -m pip install --user uv && python3 -m uv venv --seed --python 3.11 ~/edgeclf && ~/edgeclf/bin/pip install edgeclf"
)
OLD_RUNTIME = "install tflite-runtime==2.14.0 numpy<2 opencv-python<4.12"  # later wheels of OpenCV want numpy 2
OLD_ABI = "compiled using NumPy 1.x", "numpy.core.multiarray failed to import", "_ARRAY_API not found"


@dataclass(frozen=True)
class Check:
    """One line: what was looked at, `ok`, `warning` or `failing`, what was found, and the command that mends it."""

    name: str
    state: str
    found: str
    mend: str = ""

    def __str__(self) -> str:
        return f"{self.state:<8} {self.name:<9} {self.found}{': ' if self.mend else ''}{self.mend}"


def examine() -> tuple[Check, ...]:
    """Every check on this machine."""
    return diagnose(gather())


def diagnose(facts: Facts) -> tuple[Check, ...]:
    """Every check of what was found; a check that cannot be made says so and hinders no other."""
    checks = []
    for name, make in CHECKS.items():
        try:
            checks.append(replace(make(facts), name=name))
        except Exception as error:  # on a broken machine one more surprise must not hide the rest
            checks.append(Check(name, WARNING, f"could not be checked: {type(error).__name__}: {error}"))
    return tuple(checks)


def worst(checks: tuple[Check, ...]) -> str:
    """The state of all together."""
    states = {check.state for check in checks}
    return next(state for state in (FAILING, WARNING, OK) if state in states or state == OK)


def to_json(checks: tuple[Check, ...]) -> dict[str, object]:
    """The answer for machines."""
    return {"state": worst(checks), "checks": [vars(check) for check in checks]}


def _python(facts: Facts) -> Check:
    version = ".".join(map(str, facts.python))
    found = f"Python {version}, {facts.bits} bits, {facts.executable}"
    if facts.python[:2] < OLDEST:
        return Check("", FAILING, f"{found}; edgeclf needs 3.11 or newer; get one with", NEWER_PYTHON)
    if facts.managed and not facts.virtual:
        mend = "python3 -m venv --system-site-packages ~/edgeclf && ~/edgeclf/bin/pip install edgeclf"
        return Check("", WARNING, f"{found}; the system's own, where pip may install nothing; use an environment", mend)
    if facts.python[:2] > NEWEST and not any(name in facts.packages for name in RUNTIMES):
        return Check("", WARNING, f"{found}; newer than the runtime's wheels; 3.11 to 3.13 have them", NEWER_PYTHON)
    return Check("", OK, found)


def _system(facts: Facts) -> Check:
    found = f"{facts.system}, {facts.machine}{', ' if facts.board else ''}{facts.board}"
    if facts.bits == 64:
        return Check("", OK, found)
    if facts.machine == "armv6l":
        return Check("", FAILING, f"{found}: no TFLite runtime is made for ARMv6; take a board with a newer CPU")
    route = f"{found}, 32-bit: the one route is Python 3.11, tflite-runtime 2.14, and numpy and OpenCV of apt"
    if facts.python[:2] == (3, 11) and "tflite-runtime" in facts.packages and facts.packages.get("numpy", "1")[:2] != "2.":
        return Check("", OK, f"{route}, and this is it")
    return Check("", FAILING, f"{route}; a 64-bit system is better, else", ROUTE_32)


def _cpu(facts: Facts) -> Check:
    units = ", ".join(facts.vector_units) or "no vector units known"
    found = f"{facts.cores} core{'s' * (facts.cores != 1)}, {units}"
    if facts.load > facts.cores:
        return Check("", WARNING, f"{found}; busy (load {facts.load:.1f}), so whatever is measured now is too slow; see", "top")
    return Check("", OK, found)


def _numpy(facts: Facts) -> Check:
    trial, version = facts.imports.get("numpy"), facts.packages.get("numpy", "")
    if not version and (trial is None or trial.code):
        return Check("", FAILING, "numpy is not installed", _needs(facts, "numpy", "python3-numpy"))
    if trial and trial.code:
        again = _pip(facts, f"install --force-reinstall {'numpy<2' if _old_runtime(facts) else 'numpy'}")
        return Check("", FAILING, f"numpy {version} cannot be imported ({trial.reason})", again)
    if _old_runtime(facts) and version.split(".")[0] not in ("", "1", "0"):
        found = f"numpy {version} beside tflite-runtime {facts.packages['tflite-runtime']}, which needs numpy below 2"
        return Check("", FAILING, found, _one_abi(facts))
    return Check("", OK, f"numpy {version}")


def _opencv(facts: Facts) -> Check:
    wheels = [name for name in OPENCV_WHEELS if name in facts.packages]
    trial = facts.imports.get("cv2")
    if len(wheels) > 1:
        mend = f"{_pip(facts, 'uninstall -y ' + ' '.join(wheels))} && {_pip(facts, 'install --no-cache-dir opencv-python')}"
        return Check("", FAILING, f"{' and '.join(wheels)} are both installed and overwrite each other's files", mend)
    named = wheels[0] if wheels else "opencv"
    version = facts.packages.get(named, "")
    if not version and (trial is None or trial.code):
        return Check("", FAILING, "OpenCV is not installed", _needs(facts, "opencv-python", "python3-opencv"))
    if trial is None or not trial.code:
        return Check("", OK, f"{named} {version}".strip())
    found = f"{named} {version} cannot be imported ({trial.reason})"
    if "libGL.so" in trial.err or "libgthread" in trial.err or "libglib" in trial.err:
        return Check("", FAILING, f"{found}; a system library is missing", "sudo apt install -y libgl1 libglib2.0-0")
    if any(words in trial.err for words in OLD_ABI):
        mend = _one_abi(facts) if facts.bits == 32 else _pip(facts, "install --upgrade opencv-python")
        return Check("", FAILING, f"{found}; it was built for numpy 1", mend)
    return Check("", FAILING, found, _pip(facts, "install --force-reinstall --no-cache-dir opencv-python"))


def _runtime(facts: Facts) -> Check:
    installed = [name for name in RUNTIMES if name in facts.packages]
    if not installed:
        wanted = "tflite-runtime==2.14.0" if facts.bits == 32 else "ai-edge-litert"
        return Check("", FAILING, "no TFLite runtime is installed", _pip(facts, f"install {wanted}"))
    for name in installed:
        trial = facts.imports.get(RUNTIMES[name])
        if trial is None or not trial.code:
            return Check("", OK, f"{name} {facts.packages[name]}")
    name = installed[0]
    trial = facts.imports[RUNTIMES[name]]
    found = f"{name} {facts.packages[name]} cannot be imported ({trial.reason})"
    if any(words in trial.err for words in OLD_ABI):
        return Check("", FAILING, f"{found}; it was built for numpy 1", _one_abi(facts))
    if trial.code == -4:
        found += "; its code is for a newer CPU than this one"
        return Check("", FAILING, found, f"{_pip(facts, f'uninstall -y {name}')} && {_pip(facts, OLD_RUNTIME)}")
    return Check("", FAILING, found, _pip(facts, f"install --force-reinstall {name}"))


def _self_test(facts: Facts) -> Check:
    trial = facts.self_test
    if trial is None or any(make(facts).state == FAILING for make in (_numpy, _opencv, _runtime)):
        return Check("", WARNING, f"{SELF_TEST_MODEL} counts for nothing yet: what it needs is failing above")
    try:
        verdict = json.loads(trial.out)["files"][0]
        outcome, runtime = str(verdict["outcome"]), str(verdict["runtime"])
    except (ValueError, LookupError, TypeError):
        mend = _pip(facts, "install --force-reinstall --no-deps edgeclf")
        return Check("", FAILING, f"{SELF_TEST_MODEL} does not run ({_complaint(trial)})", mend)
    if outcome != "wrong":
        return Check("", OK, f"{SELF_TEST_MODEL} computes what was shipped, {outcome}, in {runtime}")
    if runtime.startswith("tflite-runtime"):
        return Check("", WARNING, f"{SELF_TEST_MODEL} differs from what was shipped in {runtime}, whose kernels round otherwise")
    mend = _pip(facts, "install --force-reinstall ai-edge-litert")
    return Check("", FAILING, f"{SELF_TEST_MODEL} computes something else than was shipped in {runtime}", mend)


def _complaint(trial: Trial) -> str:
    """Why the self-test did not run, in the words of `verify` where it came so far."""
    try:
        return str(json.loads(trial.out)["files"][0]["error"])[:200]
    except (ValueError, LookupError, TypeError):
        return trial.reason


def _camera(facts: Facts) -> Check:
    if facts.closed:
        found = f"{facts.user} may not open {', '.join(facts.closed)}; join the group video, then log in again"
        return Check("", FAILING, found, f"sudo usermod -aG video {shlex.quote(facts.user)}")
    if not facts.cameras:
        return Check("", OK if _is_pi(facts) else WARNING, "no USB camera (streams, files and folders need none)")
    return Check("", OK, ", ".join(f"{path} {name}" for path, name in facts.cameras.items()))


def _picamera2(facts: Facts) -> Check:
    trial = facts.imports.get("picamera2")
    if trial is None:
        return Check("", OK, "not looked for: this is no Raspberry Pi")
    if not trial.code:
        return Check("", OK, "picamera2 and libcamera can be imported")
    if facts.virtual and not facts.sees_system and {"picamera2", "libcamera"} <= set(facts.apt):
        mend = f"/usr/bin/python3 -m venv --system-site-packages {shlex.quote(facts.prefix)}"
        return Check("", FAILING, "picamera2 is installed by apt, but this environment does not see the system's packages", mend)
    missing = "libcamera" if "libcamera" in trial.err else "picamera2"
    state = FAILING if "picamera2" in facts.packages else WARNING
    found = f"no {missing}, so a camera on the ribbon cable cannot be used ({trial.reason})"
    mend = "sudo apt install -y python3-picamera2"
    if facts.virtual and not facts.sees_system:
        mend += f" && /usr/bin/python3 -m venv --system-site-packages {shlex.quote(facts.prefix)}"
    return Check("", state, found, mend)


def _power(facts: Facts) -> Check:
    found = complaints(facts.vitals)
    if found:
        return Check("", WARNING, "; ".join(found.values()))
    throttle, heat = facts.vitals.throttle, facts.vitals.temperature_c
    warm = f"{heat:.0f} °C" if heat is not None else "temperature unknown"
    if throttle is None:
        return Check("", OK, f"{warm}; the board does not say whether it is throttled")
    if throttle.since_start:
        return Check("", WARNING, f"{warm}; well now, but since the board started: {', '.join(throttle.since_start)}")
    return Check("", OK, f"{warm}; not throttled since the board started")


def _disk(facts: Facts) -> Check:
    if facts.free_bytes is None:
        return Check("", OK, "free space unknown")
    found = f"{facts.free_bytes / 1e9:.1f} GB free in {facts.home}"
    clean = "sudo apt-get clean && sudo journalctl --vacuum-size=50M"
    if facts.free_bytes < LEAST_FREE:
        return Check("", FAILING, f"{found}, too little to work; make room", clean)
    if facts.free_bytes < LITTLE_FREE:
        return Check("", WARNING, f"{found}; snapshots are not written below 0.5 GB; make room", clean)
    if facts.cache_refuses:
        own = f"sudo install -d -o {shlex.quote(facts.user)} {shlex.quote(facts.cache)}"
        return Check("", WARNING, f"{found}; {facts.cache_refuses}, so what was measured is not remembered", own)
    return Check("", OK, found)


def _memory(facts: Facts) -> Check:
    if facts.memory_bytes is None:
        return Check("", OK, "unknown")
    found = f"{facts.memory_bytes / 2**20:.0f} MB available"
    if facts.memory_bytes < LITTLE_MEMORY:
        return Check(
            "", WARNING, f"{found}, little for a live run; without a desktop there is more", "sudo systemctl isolate multi-user"
        )
    return Check("", OK, found)


def _ports(facts: Facts) -> Check:
    broker = f"{MQTT_PORT} (MQTT): {'a broker answers' if facts.broker_answers else 'no broker on this machine'}"
    if facts.web_port_taken:
        taken = f"{WEB_PORT} (web) is taken; {broker}; for the page choose another, or see who has it"
        return Check("", WARNING, taken, f"ss -ltnp 'sport = :{WEB_PORT}'")
    return Check("", OK, f"{WEB_PORT} (web) is free; {broker}")


def _extras(facts: Facts) -> Check:
    have = [extra for extra, package in EXTRAS.items() if package in facts.packages]
    lack = [extra for extra in EXTRAS if extra not in have]
    found = f"installed: {', '.join(have) or 'none'}; not installed: {', '.join(lack) or 'none'}"
    return Check("", OK, found)


def _display(facts: Facts) -> Check:
    return Check("", OK, f"{facts.display}" if facts.display else "none, so no --window; the web page needs none")


CHECKS = {
    "python": _python, "system": _system, "cpu": _cpu, "numpy": _numpy, "opencv": _opencv, "runtime": _runtime,
    "self-test": _self_test, "camera": _camera, "picamera2": _picamera2, "power": _power, "disk": _disk, "memory": _memory,
    "ports": _ports, "extras": _extras, "display": _display,
}  # fmt: skip


def _is_pi(facts: Facts) -> bool:
    return facts.board.startswith("Raspberry Pi")


def _old_runtime(facts: Facts) -> bool:
    """tflite-runtime alone, which was built for numpy 1."""
    return "tflite-runtime" in facts.packages and "ai-edge-litert" not in facts.packages


def _one_abi(facts: Facts) -> str:
    """A runtime and a numpy that go together: where there is LiteRT, that, as OpenCV's wheels want numpy 2 by now."""
    if facts.bits == 64:
        return f"{_pip(facts, 'uninstall -y tflite-runtime')} && {_pip(facts, 'install ai-edge-litert')}"
    wheel = any(name in facts.packages for name in OPENCV_WHEELS)
    return _pip(facts, "install numpy<2 opencv-python<4.12" if wheel else "install numpy<2")


def _needs(facts: Facts, wheel: str, debian: str) -> str:
    """On a 32-bit board the wheels would be built for hours, so apt has them."""
    return f"sudo apt install -y {debian}" if facts.bits == 32 else _pip(facts, f"install {wheel}")


def _pip(facts: Facts, arguments: str) -> str:
    return shlex.join([facts.executable, "-m", "pip", *arguments.split()])


def main(arguments: list[str]) -> int:
    """Print every check, `--json` as JSON; 1 when one is failing."""
    checks = examine()
    if "--json" in arguments:
        print(json.dumps(to_json(checks), indent=2))
    else:
        print("\n".join(map(str, checks)))
    return int(worst(checks) == FAILING)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
