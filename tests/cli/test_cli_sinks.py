"""`edgeclf run` telling other programs: brokers, Prometheus, webhooks, commands, pins, systemd; and starting afresh."""

from __future__ import annotations

import http.server
import importlib.util
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from broker import Broker, Listener, free_port, wait_for

from edgeclf.runtime.scoring import Scored


def need(package: str) -> None:
    if importlib.util.find_spec(package) is None:
        pytest.skip(f"{package} is not installed")


@pytest.fixture(scope="module")
def model(fixtures_folder: Path) -> Path:
    return fixtures_folder / "tiny-int8.tflite"


class Children:
    """`edgeclf run` as child processes, all ended at the end of the test."""

    def __init__(self) -> None:
        self._all: list[subprocess.Popen[str]] = []

    def start(self, *arguments: object, **environment: str) -> subprocess.Popen[str]:
        command = [sys.executable, "-m", "edgeclf", "run", *map(str, arguments)]
        child = subprocess.Popen(
            command, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env={**os.environ, **environment}
        )
        self._all.append(child)
        return child

    def end(self) -> None:
        for child in self._all:
            if child.poll() is None:
                child.kill()
            child.communicate()


@pytest.fixture
def children() -> Iterator[Children]:
    children = Children()
    yield children
    children.end()


@pytest.fixture
def broker(tmp_path: Path) -> Iterator[Broker]:
    need("paho")
    broker = Broker(tmp_path)
    broker.start()
    yield broker
    broker.stop()


def terminated(child: subprocess.Popen[str], within_s: float = 3.0) -> tuple[str, str]:
    """End it with SIGTERM; its output. The two seconds that a run may take, and one for a busy machine."""
    began = time.monotonic()
    child.send_signal(signal.SIGTERM)
    out, err = child.communicate(timeout=30)
    assert time.monotonic() - began < within_s
    assert child.returncode == 0
    assert "Traceback" not in err
    return out, err


def test_a_broker_knows_of_a_run_its_answers_and_its_sudden_end(children: Children, broker: Broker, model: Path) -> None:
    """Home Assistant would find it; after kill -9 the broker says offline in its name."""
    listener = Listener(broker.port)
    address = f"mqtt://keeper:s3cr3t@127.0.0.1:{broker.port}"
    child = children.start(model, "-s", "synthetic", "--mqtt", address, "--set", "mqtt.name=shed", "--json")
    state = wait_for(lambda: listener.ending("shed/state"))
    assert state["source"] == "synthetic"
    assert state["label"]
    assert wait_for(lambda: listener.ending("shed/source"))["state"] == "live"
    wait_for(lambda: listener.ending("shed/availability") == "online")
    wait_for(lambda: sum(topic.startswith("homeassistant/") for topic in list(listener.latest)) == 7)
    assert wait_for(lambda: listener.ending("shed/health"))["event"] == "health"
    child.kill()
    wait_for(lambda: listener.ending("shed/availability") == "offline")
    assert "s3cr3t" not in "".join(child.communicate())
    late = Listener(broker.port)
    wait_for(lambda: late.ending("shed/availability") == "offline")
    assert not any("s3cr3t" in text for _, text, _ in late.heard)
    late.close()
    listener.close()


def test_a_broker_that_goes_and_comes_back_changes_nothing_but_a_warning(
    children: Children, broker: Broker, model: Path, tmp_path: Path
) -> None:
    """Frames go on while it is away, and it is told again."""
    out = tmp_path / "seen.jsonl"
    address = f"mqtt://127.0.0.1:{broker.port}"
    child = children.start(model, "-s", "synthetic", "--mqtt", address, "--set", "mqtt.name=shed", "--jsonl", out, "--json")
    listener = Listener(broker.port)
    wait_for(lambda: listener.ending("shed/state"))
    listener.close()
    broker.stop()
    lines = out.read_text().count("\n")
    wait_for(lambda: out.read_text().count("\n") > lines + 30)
    broker.start()
    again = Listener(broker.port)
    wait_for(lambda: again.ending("shed/state"))
    _, err = terminated(child)
    wait_for(lambda: again.ending("shed/availability") == "offline")
    again.close()
    assert err.count("the connection was lost") == 1
    assert err.count("warning") == 1


def test_prometheus_reads_what_is_counted(children: Children, model: Path) -> None:
    """Names by convention, the device among them."""
    need("prometheus_client")
    port = free_port()
    child = children.start(model, "-s", "synthetic", "--metrics", port, "--json")

    def page() -> str:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=10) as answer:
                return str(answer.read(), "utf-8")
        except OSError:
            return ""

    wait_for(lambda: 'edgeclf_frames_total{source="synthetic"}' in page() and "edgeclf_memory_bytes" in page())
    text = page()
    assert 'edgeclf_source_up{source="synthetic"} 1.0' in text
    assert 'edgeclf_stage_seconds_bucket{le="0.005",stage="invoke"}' in text
    terminated(child)


def test_a_metrics_port_that_is_taken_ends_the_run_before_it_begins(cli_here: Any, model: Path) -> None:
    """One line and code 2."""
    need("prometheus_client")
    with socket.create_server(("127.0.0.1", 0)) as taken:
        answer = cli_here("run", model, "-s", "synthetic", "--metrics", taken.getsockname()[1])
    assert answer.code == 2
    assert "cannot be listened on: Address already in use" in answer.stderr
    assert answer.stderr.count("\n") == 1


def test_a_change_sets_off_a_webhook_and_a_command(cli: Any, model: Path, fixtures_folder: Path, tmp_path: Path) -> None:
    """Both get the event; a folder has several changes, and the last one reaches both."""
    posts: list[dict[str, Any]] = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            posts.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
            self.send_response(204)
            self.end_headers()

        def log_message(self, *_: object) -> None: ...

    script = tmp_path / "on change.py"
    script.write_text(f"import os, sys; open({str(tmp_path / 'told')!r}, 'a').write(os.environ['EDGECLF_LABEL'] + chr(10))")
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    pictures = tmp_path / "pictures"
    pictures.mkdir()
    for i, name in enumerate(("red-square.png", "blue-cross.png")):
        (pictures / f"{i}.png").write_bytes((fixtures_folder / "pictures" / name).read_bytes())
    hook = f"http://127.0.0.1:{server.server_address[1]}/t0ken"
    command = f"'{sys.executable}' -S '{script}'"
    answer = cli("run", model, "-s", pictures, "--webhook", hook, "--on-change", command, "--json")
    server.shutdown()
    server.server_close()
    assert answer.code == 0
    assert [post["stable"] for post in posts] == ["red square", "blue cross"]
    assert (tmp_path / "told").read_text().splitlines()[0] in ("red square", "blue cross")
    assert "t0ken" not in answer.text


def test_servers_that_accept_and_never_answer_do_not_slow_the_run_or_its_end(children: Children, model: Path) -> None:
    """A broker and a webhook that swallow everything: frames at the camera's rate, SIGTERM heeded in time."""
    need("paho")
    with socket.create_server(("127.0.0.1", 0)) as silent:
        port = silent.getsockname()[1]
        child = children.start(
            model, "-s", "synthetic", "--fps", 100, "--mqtt", f"mqtt://127.0.0.1:{port}",
            "--webhook", f"http://127.0.0.1:{port}/", "--jsonl", "-",
        )  # fmt: skip
        assert child.stdout is not None
        ages: list[float] = []
        while len(ages) < 200:
            record = json.loads(child.stdout.readline())
            if record["event"] == "label":
                ages.append(record["age_ms"])
        threading.Thread(target=child.stdout.read, daemon=True).start()
        began = time.monotonic()
        child.send_signal(signal.SIGTERM)
        assert child.wait(30) == 0
        assert time.monotonic() - began < 3
    assert sorted(ages)[len(ages) // 2] < 50


def test_a_pin_is_high_for_a_label(cli: Any, model: Path, fixtures_folder: Path) -> None:
    """With gpiozero's mock of a board; a pin that is none is an error before the run."""
    need("gpiozero")
    picture = fixtures_folder / "pictures" / "red-square.png"
    mock = {"GPIOZERO_PIN_FACTORY": "mock"}
    assert cli("run", model, "-s", picture, "--gpio", "17=red square,unknown", env=mock).code == 0
    answer = cli("run", model, "-s", picture, "--gpio", "99=red square", env=mock)
    assert answer.code == 2
    assert "--gpio: pin 99 cannot be used" in answer.stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--gpio", "17=red sqare"], "--gpio: the model has no label 'red sqare'; did you mean 'red square'?"),
        (["--gpio", "17"], "--gpio 17: expected PIN=LABEL[,LABEL], as in 17=cat,dog"),
        (["--gpio", "x=red square"], "--gpio x=red square: expected PIN=LABEL"),
        (["--set", "actions.labels=['car']"], "actions.labels: the model has no label 'car'"),
        (["--mqtt", "http://keeper:s3cr3t@h"], "mqtt: address: expected mqtt://HOST"),
        (["--mqtt", "mqtt://keeper@h", "--set", "mqtt.password_file=/no/such"], "/no/such: cannot read the password: No such"),
        (["--webhook", "https://h/s3cr3t word"], "actions: webhook: expected http://HOST/PATH"),
        (["--on-change", "/no/such 's3cr3t"], "actions: command: cannot be split into words"),
        (["--on-change", "/no/such s3cr3t"], "--on-change: no program '/no/such' that can be run"),
        (["--metrics", "here:there"], "service: metrics: here:there: expected HOST:PORT"),
    ],
)
def test_what_cannot_work_is_one_line_and_code_2(cli_here: Any, model: Path, arguments: list[str], message: str) -> None:
    """Before the first frame, without anything secret."""
    answer = cli_here("run", model, "-s", "synthetic", "--max-frames", 1, *arguments)
    assert answer.code == 2
    assert message in answer.stderr
    assert answer.stderr.count("\n") == 1
    assert "s3cr3t" not in answer.text


@pytest.mark.parametrize(
    ("option", "package", "extra"),
    [
        ("--mqtt=mqtt://h", "paho.mqtt.client", "mqtt"),
        ("--metrics=9", "prometheus_client", "metrics"),
        ("--gpio=1=unknown", "gpiozero", "gpio"),
    ],
)
def test_a_package_that_is_missing_is_named_with_its_extra(
    cli_here: Any, model: Path, option: str, package: str, extra: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Code 6 and the command that installs it."""
    monkeypatch.setitem(sys.modules, package, None)
    answer = cli_here("run", model, "-s", "synthetic", option)
    assert answer.code == 6
    assert f"pip install 'edgeclf[{extra}]'" in answer.stderr


def test_systemd_is_told_that_the_run_is_ready_lives_and_ends(children: Children, model: Path, tmp_path: Path) -> None:
    """With the label as status."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(str(tmp_path / "notify"))
        manager.settimeout(60)
        child = children.start(model, "-s", "synthetic", "--json", NOTIFY_SOCKET=str(tmp_path / "notify"), WATCHDOG_USEC="600000")
        told = manager.recv(4096).decode().split("\n")
        assert (told[0], told[1]) == ("READY=1", "WATCHDOG=1")
        assert told[2].startswith("STATUS=")
        for _ in range(3):
            assert "WATCHDOG=1" in manager.recv(4096).decode()
        terminated(child)
        rest = ""
        while "STOPPING=1" not in rest:
            rest = manager.recv(4096).decode()


def test_too_much_memory_ends_the_run_for_a_restart(cli: Any, model: Path) -> None:
    """Code 75 and the reason, with a limit that any run exceeds."""
    answer = cli("run", model, "-s", "synthetic", "--json", "--seconds", 60, "--set", "service.memory_mb=1")
    assert answer.code == 75
    assert json.loads(answer.stdout)["ended"] == "memory limit"


def test_answers_outlive_a_restart(cli: Any, model: Path, fixtures_folder: Path, tmp_path: Path) -> None:
    """The second run announces nothing that the first one did; one with a broken file starts afresh, with a warning."""
    state, picture = tmp_path / "state.json", fixtures_folder / "pictures" / "red-square.png"

    def changes() -> tuple[list[bool], str]:
        answer = cli("run", model, "-s", picture, "--jsonl", "-", "--set", f"service.state={state}")
        assert answer.code == 0
        records = [json.loads(line) for line in answer.stdout.splitlines()]
        return [record["changed"] for record in records if record["event"] == "label"], answer.stderr

    assert changes()[0] == [True]
    assert changes()[0] == [False]
    state.write_text(state.read_text()[:40])
    again, err = changes()
    assert again == [True]
    assert f"warning: state: {state}: is not whole JSON; starting afresh" in err
    assert changes()[0] == [False]


def test_a_classifier_that_always_fails_ends_the_run_with_an_error(
    cli_here: Any, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After so many failures in a row; one that fails now and then goes on."""
    calls: list[int] = []

    def failing(every: int) -> Any:
        def scored(frame: Any) -> Scored:
            calls.append(1)
            if len(calls) % every == 0:
                raise RuntimeError("tensor gone")
            return usual(frame)

        usual: Any = None

        def make(*asked: Any) -> Any:
            nonlocal usual
            usual = original(*asked)
            return scored

        return make

    from edgeclf.runtime import service

    original = service.scorer
    monkeypatch.setattr(service, "scorer", failing(1))
    answer = cli_here("run", model, "-s", "synthetic", "--set", "service.errors_in_row=7", "--json")
    assert (answer.code, len(calls)) == (4, 7)
    assert "classifying failed for 7 frames in a row: RuntimeError: tensor gone" in answer.stderr
    calls.clear()
    monkeypatch.setattr(service, "scorer", failing(2))
    answer = cli_here("run", model, "-s", "synthetic", "--set", "service.errors_in_row=2", "--json", "--max-frames", 10)
    assert answer.code == 0
    assert json.loads(answer.stdout)["skipped"] >= 9
