"""A board on this machine: a real sshd on loopback, with a home folder, a PATH and a system Python of its own."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import distribution
from pathlib import Path

import pytest

from edgeclf.core.files import sha256
from edgeclf.host.deploy.wheel import own_wheel, packed

SSHD = "/usr/sbin/sshd"
STARTS_WITHIN_S = 30

# The board's system has the packages of this environment, as apt would have them, but not edgeclf.
PYTHON = """#!/bin/sh
{real} "$@" || exit
[ "$1 $2" = "-m venv" ] || exit 0
for last; do :; done
for site in "$last"/lib/python*/site-packages; do echo {site} >"$site/apt.pth"; done
"""
SHELL = """#!/bin/sh
export HOME={home} PATH={home}/bin:/usr/bin:/bin
cd; exec sh -c "$SSH_ORIGINAL_COMMAND"
"""


@dataclass(frozen=True)
class Board:
    """`ssh` is what --ssh takes; `home` the board's home folder; `bin` comes first in its PATH."""

    home: Path
    ssh: str
    port: int
    target: str = "board@127.0.0.1"

    @property
    def bin(self) -> Path:
        """Where a test puts programs of the board."""
        return self.home / "bin"

    def program(self, name: str, text: str) -> None:
        """Another program of the board, a shell script."""
        path = self.bin / name
        path.write_text(f"#!/bin/sh\n{text}\n")
        path.chmod(0o755)

    def options(self) -> tuple[str, ...]:
        """What every deploy to it is told."""
        return self.target, "--ssh", self.ssh


@contextlib.contextmanager
def board(folder: Path, shell: str | None = None) -> Iterator[Board]:
    """Serve until the end of the block; `shell` is a program that gets each command line instead of a shell of this machine."""
    if not Path(SSHD).is_file() or shutil.which("ssh") is None:
        pytest.skip(f"{SSHD} or ssh is missing")
    home = folder / "home"
    (home / "bin").mkdir(parents=True)
    if shell is None:
        _system_python(folder, home)
        shell = str(_script(folder / "shell", SHELL.format(home=home)))
    for name in ("host", "user"):
        subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(folder / name)], check=True)
    port = _free_port()
    (folder / "authorized_keys").write_text((folder / "user.pub").read_text())
    (folder / "known_hosts").write_text(f"[127.0.0.1]:{port} {(folder / 'host.pub').read_text()}")
    user = os.environ.get("USER") or subprocess.run(["id", "-un"], capture_output=True, text=True, check=True).stdout.strip()
    (folder / "sshd_config").write_text(
        f"Port {port}\nListenAddress 127.0.0.1\nHostKey {folder}/host\nAuthorizedKeysFile {folder}/authorized_keys\nUsePAM no\n"
        f"StrictModes no\nPidFile none\nPasswordAuthentication no\nKbdInteractiveAuthentication no\nForceCommand {shell}\n"
        "PermitRootLogin yes\nLogLevel ERROR\n"
    )
    (folder / "ssh_config").write_text(
        f"Host *\nPort {port}\nIdentityFile {folder}/user\nIdentitiesOnly yes\nUserKnownHostsFile {folder}/known_hosts\n"
        "StrictHostKeyChecking yes\n"
    )
    log = (folder / "sshd.log").open("wb")
    server = subprocess.Popen([*_with_run_folder(), SSHD, "-D", "-e", "-f", str(folder / "sshd_config")], stderr=log)
    try:
        _await(port, server, folder / "sshd.log")
        yield Board(home, f"ssh -F {folder}/ssh_config", port, f"{user}@127.0.0.1")
    finally:
        server.terminate()
        server.wait(10)
        log.close()


def wheels(folder: Path) -> Path:
    """A wheelhouse for this machine with edgeclf and pip; everything else a board here has from its system."""
    own_wheel(folder)
    packed(distribution("pip"), folder)
    found = {path.name: sha256(path) for path in folder.glob("*.whl")}
    python = f"{sys.version_info.major}.{sys.version_info.minor}"
    table = {"edgeclf_wheelhouse": 1, "machine": machine(), "python": python, "glibc": 36, "extras": [], "wheels": found}
    (folder / "wheelhouse.json").write_text(json.dumps(table))
    return folder


def machine() -> str:
    """Of this machine, as a board says it."""
    return subprocess.run(["uname", "-m"], capture_output=True, text=True, check=True).stdout.strip()


def _with_run_folder() -> list[str]:
    """As root sshd wants /run/sshd, which only a started service makes; a mount namespace gives it one of its own."""
    if os.getuid() or Path("/run/sshd").is_dir():
        return []
    return ["unshare", "--mount", "sh", "-c", 'mount -t tmpfs none /run && mkdir /run/sshd && exec "$@"', "sh"]


def _system_python(folder: Path, home: Path) -> None:
    site = folder / "apt"
    site.mkdir()
    for entry in (
        Path(sys.prefix) / "lib" / f"python{sys.version_info.major}.{sys.version_info.minor}" / "site-packages"
    ).iterdir():
        if not entry.name.startswith(("edgeclf", "_edgeclf", "__pycache__")) and entry.suffix != ".pth":
            (site / entry.name).symlink_to(entry)
    real = Path(sys.base_prefix) / "bin" / f"python{sys.version_info.major}.{sys.version_info.minor}"
    _script(home / "bin" / "python3", PYTHON.format(real=real, site=site))


def _script(path: Path, text: str) -> Path:
    path.write_text(text)
    path.chmod(0o755)
    return path


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def _await(port: int, server: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + STARTS_WITHIN_S
    while time.monotonic() < deadline:
        if server.poll() is not None:
            pytest.skip(f"sshd does not start here: {log.read_text()[-200:]}")
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
            return
        time.sleep(0.05)
    pytest.fail("sshd does not listen")
