"""Build an emulated Raspberry Pi user space on an x86-64 Linux host: real aarch64 wheels under qemu-user, no board, no container.

    python tools/emulated_pi/build.py [DIR] [--suite bookworm] [--mirror URL]

Needs `qemu-user` (a dynamic build, 7.2 to 8.2: newer ones changed the plugin interface), `mmdebstrap`, a C compiler, and
this Python's pip. DIR then holds `pi4` and `pi5` (Debian files with a /proc and a /sys that look like that board), `site`
(what locks/base.lock pins, for aarch64) and `counter.so` (the instruction counter). Nothing is run as root and
nothing outside DIR is changed.
"""

from __future__ import annotations

import argparse
import compileall
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from py_compile import PycInvalidationMode

from edgeclf.host.report.emulate import PYTHONS, default_home

HERE = Path(__file__).resolve().parent
LOCK = HERE.parent.parent / "locks" / "base.lock"
CORES = 4
GLIBC_MINORS = 17, 24, 26, 27, 28, 31, 34, 35, 36
UNUSED = "tmp dev run root home mnt media srv opt var usr/share/doc usr/share/man usr/share/locale"


@dataclass(frozen=True)
class Board:
    """What CPU detection reads of a board. `part` and `variant` are fields of Arm's MIDR register."""

    model: str
    features: str
    variant: int
    part: int
    revision: int
    max_khz: int


BOARDS = {
    "pi4": Board("Raspberry Pi 4 Model B Rev 1.5", "fp asimd evtstrm crc32 cpuid", 0, 0xD08, 3, 1_800_000),
    "pi5": Board(
        "Raspberry Pi 5 Model B Rev 1.0",
        "fp asimd evtstrm aes pmull sha1 sha2 crc32 atomics fphp asimdhp cpuid asimdrdm lrcpc dcpop asimddp",
        4, 0xD0B, 1, 2_400_000,
    ),
}  # fmt: skip


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("home", nargs="?", type=Path, default=default_home(), metavar="DIR", help="default: %(default)s")
    options.add_argument("--suite", choices=PYTHONS, default="bookworm", help="the Debian release (default: %(default)s)")
    options.add_argument("--mirror", help="a Debian mirror; default: the one that this host's apt uses")
    asked = options.parse_args()
    build(asked.home.resolve(), asked.suite, asked.mirror or host_mirror())
    print(f"built in {asked.home}; try: python tools/emulated_pi/run.py --home {asked.home} --device pi4 -- -m edgeclf models")


def build(home: Path, suite: str, mirror: str) -> None:
    """Fill `home`, which must be new or an earlier build; about half a minute and 420 MB."""
    for program in ("qemu-aarch64", "mmdebstrap", "cc"):
        if shutil.which(program) is None:
            raise SystemExit(f"{program} is missing; install it: apt-get install qemu-user mmdebstrap gcc")
    if home.exists() and any(home.iterdir()) and not (home / "suite").is_file():
        raise SystemExit(f"{home}: holds other files; name a new folder")
    shutil.rmtree(home, ignore_errors=True)
    home.mkdir(parents=True)
    (home / "suite").write_text(suite + "\n")
    unpack_debian(home / "pi4", suite, mirror)
    install_wheels(home / "site", PYTHONS[suite])
    if f"{sys.version_info.major}.{sys.version_info.minor}" == PYTHONS[suite]:
        for folder in (home / "pi4/usr/lib" / f"python{PYTHONS[suite]}", home / "site"):
            _compile(folder)
    shutil.copytree(home / "pi4", home / "pi5", symlinks=True, copy_function=_link)
    for name, board in BOARDS.items():
        disguise(home / name, board)
    build_counter(home / "counter.so")


def unpack_debian(root: Path, suite: str, mirror: str) -> None:
    """Unpack Debian's aarch64 Python into `root`; no maintainer script runs, so nothing is emulated yet."""
    merged = 'for d in bin sbin lib; do mkdir -p "$1/usr/$d"; ln -s "usr/$d" "$1/$d"; done'
    _run(
        "mmdebstrap", "--quiet", "--variant=extract", "--architectures=arm64", "--include=python3,libstdc++6,libgcc-s1",
        f"--setup-hook={merged}", suite, str(root), f"deb {mirror} {suite} main",
    )  # fmt: skip
    for name in UNUSED.split():  # qemu looks for a guest path under `root` first; these shall mean the host's
        shutil.rmtree(root / name, ignore_errors=True)


def disguise(root: Path, board: Board) -> None:
    """Plain files under proc/ and sys/ from which cpuinfo (XNNPACK, ruy, ONNX Runtime) concludes that this is `board`."""
    for folder in (root / "proc", root / "sys"):
        shutil.rmtree(folder, ignore_errors=True)
    cpu = root / "sys/devices/system/cpu"
    every = f"0-{CORES - 1}"
    for name in ("possible", "present", "online"):
        _write(cpu / name, every)
    for core in range(CORES):
        _write(cpu / f"cpu{core}/cpufreq/cpuinfo_max_freq", str(board.max_khz))
        _write(cpu / f"cpu{core}/cpufreq/cpuinfo_min_freq", "600000")
        _write(cpu / f"cpu{core}/topology/physical_package_id", "0")
        _write(cpu / f"cpu{core}/topology/core_id", str(core))
        for name in ("core_siblings_list", "cluster_cpus_list", "package_cpus_list"):
            _write(cpu / f"cpu{core}/topology/{name}", every)
    _write(root / "proc/cpuinfo", "".join(_processor(core, board) for core in range(CORES)) + f"Model\t\t: {board.model}")
    for name in ("proc/device-tree/model", "sys/firmware/devicetree/base/model"):
        _write(root / name, board.model + "\0", end="")


def _processor(core: int, board: Board) -> str:
    fields = {
        "processor": core, "BogoMIPS": "108.00", "Features": board.features, "CPU implementer": "0x41",
        "CPU architecture": 8, "CPU variant": hex(board.variant), "CPU part": hex(board.part), "CPU revision": board.revision,
    }  # fmt: skip
    return "".join(f"{name}\t: {value}\n" for name, value in fields.items()) + "\n"


def install_wheels(site: Path, python: str) -> None:
    """The wheels of locks/base.lock for aarch64, unpacked by the host's pip; OpenCV without windows, for there is no display."""
    site.mkdir()
    wanted = site / "requirements.txt"
    wanted.write_text(LOCK.read_text(encoding="utf-8").replace("opencv-python==", "opencv-python-headless=="), encoding="utf-8")
    platforms = ["manylinux2014_aarch64", *(f"manylinux_2_{minor}_aarch64" for minor in GLIBC_MINORS)]
    _run(
        sys.executable, "-m", "pip", "--disable-pip-version-check", "install", "--quiet", "--target", str(site),
        "--no-deps", "--no-compile", "--only-binary=:all:", "--implementation", "cp", "--python-version", python,
        *(f"--platform={p}" for p in platforms), "-r", str(wanted),
    )  # fmt: skip


def _compile(folder: Path) -> None:
    """Byte-compile on the host, which emulation would be slow at; .pyc files do not depend on the CPU, only on the Python."""
    compileall.compile_dir(str(folder), quiet=2, invalidation_mode=PycInvalidationMode.UNCHECKED_HASH)


def build_counter(library: Path) -> None:
    """Compile counter.c, the plugin that counts instructions; it needs no QEMU headers."""
    _run("cc", "-O2", "-Wall", "-shared", "-fPIC", "-o", str(library), str(HERE / "counter.c"))


def host_mirror() -> str:
    """The Debian mirror that this host's apt uses already."""
    answer = subprocess.run(["apt-get", "indextargets", "--format", "$(REPO_URI)"], capture_output=True, text=True, check=False)
    for line in answer.stdout.splitlines():
        if line.rstrip("/").endswith("/debian"):
            return line
    raise SystemExit("no Debian mirror among this host's apt sources; name one with --mirror")


def _run(*command: str) -> None:
    done = subprocess.run(command, check=False)
    if done.returncode:
        raise SystemExit(f"{command[0]} failed with exit code {done.returncode}")


def _write(path: Path, text: str, end: str = "\n") -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text + end)


def _link(source: str, target: str) -> None:
    Path(target).hardlink_to(source)


if __name__ == "__main__":
    main()
