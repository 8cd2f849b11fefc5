"""The seam to a board: shell scripts with arguments, over the user's own OpenSSH and one connection."""

from __future__ import annotations

import contextlib
import re
import select
import shlex
import subprocess
import tempfile
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any, Protocol

from edgeclf.core.errors import BoardError, ConfigError
from edgeclf.core.text import printable

CONTACT_SECONDS = 10.0  # until a board that does not answer is given up
ALIVE_SECONDS, ALIVE_TRIES = 5, 3  # a connection that fell silent ends after their product
MOST_OUTPUT = 4 << 20  # bytes that are read of what a board says
READY, LOCKED = "edgeclf-ready", 99
TARGET = re.compile(r"(?:[A-Za-z0-9_][A-Za-z0-9_.-]*@)?[A-Za-z0-9_\[:][A-Za-z0-9_.:%\[\]-]*")

# Held for the whole deploy: the lock goes when the connection does, whatever ended it, and leaves no file.
HOLD = f"""
if command -v flock >/dev/null; then exec flock -n -E {LOCKED} "$HOME" sh -c 'echo {READY}; exec cat >/dev/null'; fi
echo {READY}; exec cat >/dev/null
"""


@dataclass(frozen=True)
class Done:
    """What a script left: its exit code, and what it said on both outputs (at most 4 MB of each)."""

    code: int
    out: str
    err: str

    @property
    def last_line(self) -> str:
        """The last line of its errors, else of its output; made safe for a terminal."""
        lines = [line.strip() for line in (self.err.strip() or self.out.strip()).splitlines() if line.strip()]
        return printable(lines[-1])[:400] if lines else f"exit code {self.code}"


class Remote(Protocol):
    """Where scripts run: `script` is for `sh`, with `arguments` as $1, $2 …; `stdin` is a file that it reads."""

    def run(self, script: str, *arguments: str, stdin: Path | None = None, seconds: float = 60) -> Done: ...


@dataclass(frozen=True)
class Address:
    """A board as ssh knows it: `user@host` or a name of ssh's own configuration; `ssh` is the program, with options."""

    target: str
    port: int | None = None
    ssh: tuple[str, ...] = ("ssh",)

    def __post_init__(self) -> None:
        if not TARGET.fullmatch(self.target):
            raise ConfigError(f"{printable(self.target)}: expected USER@HOST, or a name that ssh knows")
        if not self.ssh:
            raise ConfigError("--ssh is empty; give the program, as in: --ssh 'ssh -i key'")

    def command(self, control: str, *options: str) -> list[str]:
        """The start of each command line: no prompt, no forwarding, a connection that notices when it is dead."""
        fixed = {
            "BatchMode": "yes", "ConnectTimeout": f"{CONTACT_SECONDS:.0f}", "ConnectionAttempts": "1",
            "ServerAliveInterval": ALIVE_SECONDS, "ServerAliveCountMax": ALIVE_TRIES, "ControlPath": control,
            "ForwardAgent": "no", "ForwardX11": "no", "ClearAllForwardings": "yes", "RequestTTY": "no", "RemoteCommand": "none",
            "LogLevel": "ERROR",
        }  # fmt: skip
        port = ["-p", str(self.port)] if self.port else []
        return [*self.ssh, *(f"-o{k}={v}" for k, v in fixed.items()), *options, *port, "--", self.target]


def remote_line(script: str, arguments: tuple[str, ...]) -> str:
    """One line for the login shell there, whichever it is: everything of ours is quoted."""
    return shlex.join(["sh", "-c", script, "sh", *arguments])


class Children:
    """The ssh processes that run, so that whoever waits for several boards can end them all; safe between threads."""

    def __init__(self) -> None:
        self._running: set[subprocess.Popen[bytes]] = set()
        self._lock, self._ended = threading.Lock(), False

    @contextlib.contextmanager
    def start(self, command: list[str], **pipes: Any) -> Iterator[subprocess.Popen[bytes]]:
        """A child in a process group of its own, so that Ctrl-C reaches us alone. Raises Stopped after `end`, OSError."""
        with self._lock:
            self.check()
            child = subprocess.Popen(command, process_group=0, **pipes)
            self._running.add(child)
        try:
            yield child
        finally:
            with self._lock:
                self._running.discard(child)

    def end(self) -> None:
        """Kill those that run, and start no more."""
        with self._lock:
            self._ended = True
            for child in self._running:
                child.kill()

    @property
    def ended(self) -> bool:
        """Whether `end` was called."""
        return self._ended

    def check(self) -> None:
        """Raises Stopped after `end`."""
        if self._ended:
            raise Stopped("stopped")


class Stopped(BoardError):
    """The deploy was ended from here, as by Ctrl-C."""


@dataclass(frozen=True)
class OpenSsh:
    """Scripts over the connection that `connected` holds open."""

    address: Address
    control: str
    children: Children = field(default_factory=Children)

    def run(self, script: str, *arguments: str, stdin: Path | None = None, seconds: float = 60) -> Done:
        """Raises BoardError when the connection fails or nothing ends within `seconds`."""
        command = [*self.address.command(self.control, "-oControlMaster=no"), remote_line(script, arguments)]
        with stdin.open("rb") if stdin else contextlib.nullcontext(subprocess.DEVNULL) as source:
            done = _bounded(command, source, seconds, self.address.target, self.children)
        self.children.check()
        if done.code == 255:
            raise BoardError(f"{self.address.target}: {_explained(done.last_line)}")
        return done


@contextlib.contextmanager
def connected(address: Address, children: Children | None = None) -> Iterator[OpenSsh]:
    """One connection, and this machine's place in the queue: a second deploy to the same account is refused meanwhile.

    Raises BoardError within 10 seconds when the board does not answer or lets nobody in.
    """
    children = children or Children()
    with tempfile.TemporaryDirectory(prefix="edgeclf-", ignore_cleanup_errors=True) as folder, tempfile.TemporaryFile() as errors:
        control = f"{folder}/c"  # short: a socket's path holds 107 bytes
        command = [*address.command(control, "-oControlMaster=yes", "-oControlPersist=no"), remote_line(HOLD, ())]
        with contextlib.ExitStack() as stack:
            try:
                master = stack.enter_context(
                    children.start(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors)
                )
            except OSError as error:
                raise ConfigError(
                    f"{address.ssh[0]}: cannot be started: {error.strerror}; install OpenSSH: apt-get install openssh-client"
                ) from error
            stack.callback(_end, master)
            _await_ready(master, errors, address)
            yield OpenSsh(address, control, children)


def _await_ready(master: subprocess.Popen[bytes], errors: IO[bytes], address: Address) -> None:
    assert master.stdout is not None
    deadline, seen = time.monotonic() + CONTACT_SECONDS, b""
    while READY.encode() not in seen and len(seen) < MOST_OUTPUT:
        if not select.select([master.stdout], [], [], max(0.0, deadline - time.monotonic()))[0]:
            raise BoardError(f"{address.target}: no answer within {CONTACT_SECONDS:.0f} s; is the board on, and on this network?")
        part = master.stdout.read1(4096)  # type: ignore[attr-defined]
        if not part:
            break
        seen += part
    else:
        return
    code = master.wait(CONTACT_SECONDS)
    errors.seek(0)
    said = Done(code, "", errors.read(MOST_OUTPUT).decode("utf-8", "replace")).last_line
    if code == LOCKED:
        raise BoardError(f"{address.target}: another deploy to this account is at work; wait for it")
    raise BoardError(f"{address.target}: {_explained(said)}")


def _explained(said: str) -> str:
    """ssh's own last line, and what to do where that is known."""
    hints = {
        "permission denied": "ssh asks for a password or knows no key of yours; run once: ssh-copy-id USER@HOST",
        "host key verification failed": "connect once by hand to accept its key: ssh USER@HOST",
        "could not resolve": "check the name; on many networks a Pi answers to NAME.local",
        "refused": "switch ssh on there: sudo raspi-config nonint do_ssh 0",
        "timed out": "is the board on, and on this network?",
        "no route": "is the board on, and on this network?",
    }
    hint = next((text for sign, text in hints.items() if sign in said.lower()), "")
    return f"{said}; {hint}" if hint else said


def _end(process: subprocess.Popen[bytes]) -> None:
    """Close the input, which ends the script there and with it the connection."""
    with contextlib.suppress(OSError):
        if process.stdin is not None:
            process.stdin.close()
    try:
        process.wait(2)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
    if process.stdout is not None:
        process.stdout.close()


def _bounded(command: list[str], stdin: IO[bytes] | int, seconds: float, name: str, children: Children) -> Done:
    """Run to the end, keeping at most MOST_OUTPUT of each output; more, or more time, ends it."""
    with children.start(command, stdin=stdin, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        return _drained(process, seconds, name)


def _drained(process: subprocess.Popen[bytes], seconds: float, name: str) -> Done:
    kept = [bytearray(), bytearray()]

    def drain(pipe: IO[bytes], into: bytearray) -> None:
        while part := pipe.read1(65536):  # type: ignore[attr-defined]
            into += part
            if len(into) > MOST_OUTPUT:
                process.kill()
                return

    pipes = [pipe for pipe in (process.stdout, process.stderr) if pipe is not None]
    threads = [threading.Thread(target=drain, args=pair, daemon=True) for pair in zip(pipes, kept, strict=True)]
    try:
        for thread in threads:
            thread.start()
        code = process.wait(seconds)
    except subprocess.TimeoutExpired as error:
        raise BoardError(f"{name}: a step did not end within {seconds:.0f} s; try again, it goes on where it was") from error
    finally:
        process.kill()
        process.wait()
        for thread in threads:
            thread.join(2)
        for pipe in pipes:
            pipe.close()
    return Done(code, *(bytes(part).decode("utf-8", "replace") for part in kept))
