"""Addresses: what is understood, and that no part of a secret is ever shown, however the address is wrong."""

from __future__ import annotations

from pathlib import Path

import pytest

from edgeclf.core.addresses import broker_address, secret, web_address
from edgeclf.core.errors import ConfigError
from edgeclf.core.live_settings import ActionsSection, MqttSection, ServiceSection

SECRETS = ("s3cr3t", "w0rd", "t0ken", "keeper")


@pytest.mark.parametrize(
    ("text", "shown", "user", "password"),
    [
        ("mqtt://broker", "mqtt://broker:1883", "", ""),
        ("mqtts://broker.example.org", "mqtts://broker.example.org:8883", "", ""),
        ("MQTT://keeper@10.0.0.2:99/", "mqtt://10.0.0.2:99", "keeper", ""),
        ("mqtt://keeper:s3cr3t@[::1]", "mqtt://[::1]:1883", "keeper", "s3cr3t"),
        ("mqtt://keeper:s3cr3t@w0rd/#?@host", "mqtt://host:1883", "keeper", "s3cr3t@w0rd/#?"),
        ("mqtt://keeper:s3cr3t%40@host", "mqtt://host:1883", "keeper", "s3cr3t@"),
    ],
)
def test_a_broker_is_understood_and_shown_without_its_user(text: str, shown: str, user: str, password: str) -> None:
    """Ports by scheme; any character in a password; nothing of it in text or repr."""
    address = broker_address(text)
    assert (str(address), address.user, address.password) == (shown, user, password)
    assert not any(word in f"{address} {address!r}" for word in SECRETS)


@pytest.mark.parametrize(
    "text",
    [
        "keeper:s3cr3t@host",
        "http://keeper:s3cr3t@host",
        "mqtt://keeper:s3cr3t@",
        "mqtt://keeper:s3cr3t@host:70000",
        "mqtt://keeper:s3cr3t@host/t0ken",
        "mqtt://keeper:s3cr3t@ho st",
        "mqtt://keeper:s3cr3t@[::zz]",
        "mqtt://keeper:s3cr3t@" + "a" * 64,
        "mqtt://keeper:s3cr3t@a..b",
        "mqtt://keeper:s3cr3t@host\nx",
    ],
)
def test_what_is_no_broker_is_refused_without_showing_it(text: str) -> None:
    """The message says what was expected."""
    with pytest.raises(ConfigError, match="expected mqtt://HOST") as caught:
        broker_address(text)
    assert not any(word in str(caught.value) for word in SECRETS)


def test_a_webhook_is_understood_and_shown_without_its_path() -> None:
    """Path and query often are the secret."""
    address = web_address("https://keeper:s3cr3t@hooks.example.org/t0ken?w0rd=1")
    assert (address.target, address.user, address.password) == ("/t0ken?w0rd=1", "keeper", "s3cr3t")
    assert str(address) == "https://hooks.example.org:443"
    assert not any(word in repr(address) for word in SECRETS)
    assert web_address("http://h?x").target == "/?x"
    assert web_address("http://h:8123").netloc == "h:8123"


@pytest.mark.parametrize(
    "text",
    [
        "ftp://keeper:s3cr3t@host/",
        "file:///etc/s3cr3t",
        "https://keeper:s3cr3t@w0rd/x@host/",
        "https://keeper:s3cr3t/w0rd@host/",
        "https://host/t0ken#w0rd",
        "https://host/t0ken w0rd",
        "https://host/t0kén",
        "https://host/t0ken\r\nX: y",
        "https://:80/t0ken",
    ],
)
def test_what_is_no_webhook_is_refused_without_showing_it(text: str) -> None:
    """A password with a slash in it would make its beginning the host."""
    with pytest.raises(ConfigError, match="expected http://HOST/PATH") as caught:
        web_address(text)
    assert not any(word in str(caught.value) for word in SECRETS)


def test_a_password_comes_from_the_environment_then_from_its_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first line of the file, without its end."""
    monkeypatch.delenv("SOME_PASSWORD", raising=False)
    file = tmp_path / "password"
    file.write_text("s3cr3t w0rd \nanother\n")
    assert secret("SOME_PASSWORD", "") == ""
    assert secret("SOME_PASSWORD", str(file)) == "s3cr3t w0rd "
    monkeypatch.setenv("SOME_PASSWORD", "t0ken")
    assert secret("SOME_PASSWORD", str(file)) == "t0ken"


@pytest.mark.parametrize("content", [b"", b"\ns3cr3t", b"s3cr3t\xff", b"s3cr3t" * 1000])
def test_a_password_file_that_cannot_be_right_is_refused(content: bytes, tmp_path: Path) -> None:
    """The file is named, what it holds is not."""
    file = tmp_path / "password"
    file.write_bytes(content)
    with pytest.raises(ConfigError, match="password") as caught:
        secret("NO_SUCH_VARIABLE", str(file))
    assert "s3cr3t" not in str(caught.value)
    with pytest.raises(ConfigError, match="No such file"):
        secret("NO_SUCH_VARIABLE", str(tmp_path / "missing"))


@pytest.mark.parametrize(
    ("section", "wrong", "message"),
    [
        (MqttSection, {"address": "host"}, "address: expected mqtt://"),
        (MqttSection, {"topic": ""}, "topic: must not be empty"),
        (MqttSection, {"topic": "a/#"}, r"topic: must not hold \+ # \$"),
        (MqttSection, {"discovery": "/ha"}, "discovery: must not"),
        (MqttSection, {"name": "a/b"}, "name: must not hold a slash"),
        (MqttSection, {"every_s": 0.5}, "every_s = 0.5: must be at least 1"),
        (MqttSection, {"queue": 0}, "queue = 0"),
        (ActionsSection, {"webhook": "gopher://x"}, "webhook: expected http://"),
        (ActionsSection, {"command": "echo 's3cr3t"}, "command: cannot be split into words: no closing quotation$"),
        (ActionsSection, {"command_s": 0.0}, "command_s = 0.0"),
        (ActionsSection, {"gpio_pin": 17}, "gpio_pin and gpio_labels"),
        (ActionsSection, {"gpio_labels": ("cat",)}, "gpio_pin and gpio_labels"),
        (ServiceSection, {"metrics": "a:b:c"}, "metrics: a:b:c: expected HOST:PORT"),
        (ServiceSection, {"memory_mb": -1}, "memory_mb = -1"),
        (ServiceSection, {"errors_in_row": 0}, "errors_in_row = 0"),
    ],
)
def test_settings_that_cannot_work_are_refused_where_they_are_read(section: type, wrong: dict[str, object], message: str) -> None:
    """Each names its key."""
    with pytest.raises(ConfigError, match=message):
        section(**wrong)
