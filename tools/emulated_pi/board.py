"""Build an emulated Raspberry Pi 4 that commands run on as on a board: its own shell, coreutils and Python, all aarch64.

    python tools/emulated_pi/board.py [DIR]                      build it, half a minute and 250 MB
    python tools/emulated_pi/board.py [DIR] --run 'uname -m'     run a command line there

Where `build.py` makes a user space for one emulated Python, this makes one for whole command lines, so that `edgeclf deploy`
can be tried against it: the kernel starts every aarch64 program under QEMU (binfmt_misc), inside user and mount namespaces
of its own. Needs Linux 6.7 or newer, `mmdebstrap`, `unshare`, `dpkg` and apt. Nothing is installed and nothing outside DIR
is changed.
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
from pathlib import Path

from build import BOARDS, disguise, host_mirror

from edgeclf.core.files import cache_folder

SUITE, PYTHON, CPU = "bookworm", "3.11", "cortex-a72"
PACKAGES = (
    "python3,python3-distutils,libstdc++6,libgcc-s1,dash,bash,coreutils,util-linux,libc-bin,grep,sed,findutils,hostname,"
    "base-files,passwd"
)
MERGED = 'for d in bin sbin lib; do mkdir -p "$1/usr/$d"; ln -s "usr/$d" "$1/$d"; done'
ELF = r"\x7fELF\x02\x01\x01\x00\x00\x00\x00\x00\x00\x00\x00\x00\x02\x00\xb7\x00"
ELF_MASK = r"\xff\xff\xff\xff\xff\xff\xff\x00\xff\xff\xff\xff\xff\xff\xff\xff\xfe\xff\xff\xff"

# The kernel's own aarch64 support, in a namespace that ends with the command; /proc/cpuinfo and /sys are those of a Pi 4.
ENTER = r"""#!/bin/sh
# enter [COMMAND LINE]; without one, what sshd's ForceCommand was asked for
set -eu
command=${1:-${SSH_ORIGINAL_COMMAND:-sh}}
exec unshare --user --map-root-user --mount --pid --fork --kill-child sh -euc '
home=$1; root=$home/pi4
mount -t tmpfs none "$home/mnt"
mount -t binfmt_misc none "$home/mnt"
printf %s ":aarch64:M::{elf}:{mask}:$home/qemu-aarch64-static:F" >"$home/mnt/register"
mount -t proc proc "$root/proc"
mount --bind "$home/cpuinfo" "$root/proc/cpuinfo"
mount --rbind /dev "$root/dev"
export PIP_NO_COMPILE=1 QEMU_CPU={cpu} HOME=/home/pi PATH=/usr/local/bin:/usr/bin:/bin LANG=C.UTF-8
exec /usr/sbin/chroot "$root" /bin/sh -c "cd; $2"
' sh {home} "$command"
"""


def default_home() -> Path:
    """Where the board is, unless another folder is named."""
    return cache_folder() / "emulated-pi-board"


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("home", nargs="?", type=Path, default=default_home(), metavar="DIR", help="default: %(default)s")
    options.add_argument("--run", metavar="COMMAND", help="a command line for the board's shell")
    asked = options.parse_args()
    home = asked.home.resolve()
    if not is_built(home):
        build(home)
        print(f"built in {home}")
    if asked.run:
        sys.exit(subprocess.run([home / "enter", asked.run], check=False).returncode)


def is_built(home: Path) -> bool:
    """Whether a board is there, whole."""
    return (home / "enter").is_file()


def build(home: Path) -> None:
    """Fill `home`, which must be new or what an interrupted build left."""
    for program in ("mmdebstrap", "dpkg", "apt-get", "unshare"):
        if shutil.which(program) is None:
            raise SystemExit(f"{program} is missing; install it: apt-get install mmdebstrap util-linux")
    if home.exists() and any(home.iterdir()) and not (home / "mnt").is_dir():
        raise SystemExit(f"{home}: holds other files; name a new folder")
    shutil.rmtree(home, ignore_errors=True)
    (home / "mnt").mkdir(parents=True)
    fetch_qemu(home)
    root = home / "pi4"
    mirror = host_mirror()
    command = ["mmdebstrap", "--quiet", "--variant=extract", "--architectures=arm64", f"--include={PACKAGES}"]
    _run(*command, f"--setup-hook={MERGED}", SUITE, str(root), f"deb {mirror} {SUITE} main")
    (root / "home/pi").mkdir(parents=True, exist_ok=True)
    (root / "etc/group").write_text("root:x:0:\nvideo:x:44:\n")
    (root / "etc/passwd").write_text("root:x:0:0:root:/home/pi:/bin/sh\n")
    disguise(root, BOARDS["pi4"])
    shutil.copy(root / "proc/cpuinfo", home / "cpuinfo")
    shutil.rmtree(root / "proc")
    (root / "proc").mkdir()
    script = ENTER.replace("{elf}", ELF).replace("{mask}", ELF_MASK).replace("{cpu}", CPU).replace("{home}", str(home))
    (home / ".enter").write_text(script.replace("\\x", "\\\\x"))
    (home / ".enter").chmod(0o755)
    (home / ".enter").rename(home / "enter")


def fetch_qemu(home: Path) -> None:
    """Debian's static QEMU, unpacked and not installed: inside the board's root no library of this machine is found."""
    _run("apt-get", "-qq", "-oAPT::Sandbox::User=root", "download", "qemu-user-static", cwd=home)
    (package,) = home.glob("qemu-user-static_*.deb")
    _run("dpkg-deb", "--extract", str(package), str(home / "qemu"))
    shutil.move(home / "qemu/usr/bin/qemu-aarch64-static", home / "qemu-aarch64-static")
    shutil.rmtree(home / "qemu")
    package.unlink()


def _run(*command: str, cwd: Path | None = None) -> None:
    done = subprocess.run(command, check=False, cwd=cwd)
    if done.returncode:
        raise SystemExit(f"{command[0]} failed with exit code {done.returncode}")


if __name__ == "__main__":
    main()
