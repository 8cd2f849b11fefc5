"""Chromium, driven over a pipe with its DevTools protocol: nothing to install beside the browser itself."""

from __future__ import annotations

import base64
import json
import os
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

CHROMIUM = Path("/usr/bin/chromium")
DEADLINE_S = 60
FLAGS = [
    "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run", "--disable-sync",
    "--disable-background-networking", "--disable-component-update", "--hide-scrollbars", "--mute-audio",
    "--use-fake-device-for-media-stream", "--remote-debugging-pipe",
]  # fmt: skip
# Chromium reads file 3 and writes file 4; a child that only moves them there needs no code between fork and exec.
SHIM = "import os, sys; r, w = map(int, sys.argv[1:3]); os.dup2(r, 63); os.dup2(w, 62); os.dup2(63, 3); os.dup2(62, 4); "
SHIM += "os.close(63); os.close(62); os.execv(sys.argv[3], sys.argv[3:])"


class Browser:
    """One browser process; `page` opens a tab. Every wait has a generous deadline."""

    def __init__(self, profile: Path) -> None:
        theirs_in, self._out = os.pipe()
        self._in, theirs_out = os.pipe()
        command = [sys.executable, "-c", SHIM, theirs_in, theirs_out, CHROMIUM, *FLAGS, f"--user-data-dir={profile}"]
        self._child = subprocess.Popen(
            list(map(str, command)), pass_fds=(theirs_in, theirs_out), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        os.close(theirs_in)
        os.close(theirs_out)
        self._number = 0
        self._answers: dict[int, dict[str, Any]] = {}
        self.events: list[dict[str, Any]] = []
        self._came = threading.Condition()
        threading.Thread(target=self._read, daemon=True).start()

    def _read(self) -> None:
        waiting = b""
        while chunk := os.read(self._in, 1 << 16):
            *whole, waiting = (waiting + chunk).split(b"\0")
            with self._came:
                for message in map(json.loads, whole):
                    if "id" in message:
                        self._answers[message["id"]] = message
                    else:
                        self.events.append(message)
                self._came.notify_all()

    def send(self, method: str, session: str | None = None, **parameters: Any) -> dict[str, Any]:
        self._number += 1
        number = self._number
        message = {"id": number, "method": method, "params": parameters, **({"sessionId": session} if session else {})}
        os.write(self._out, json.dumps(message).encode() + b"\0")
        with self._came:
            assert self._came.wait_for(lambda: number in self._answers, DEADLINE_S), f"{method}: no answer"
            answer = self._answers.pop(number)
        assert "error" not in answer, f"{method}: {answer['error']}"
        result: dict[str, Any] = answer["result"]
        return result

    def page(self, address: str, width: int = 1280, height: int = 900, dark: bool = False, still: bool = False) -> Page:
        target = self.send("Target.createTarget", url="about:blank")["targetId"]
        session = self.send("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        page = Page(self, session, target)
        for domain in ("Page", "Runtime", "Log", "DOM"):
            page.send(f"{domain}.enable")
        page.size(width, height, dark, still)
        page.send("Emulation.setFocusEmulationEnabled", enabled=True)  # a tab behind another one stops watching
        page.send("Page.navigate", url=address)
        return page

    def close(self) -> None:
        self._child.kill()
        self._child.wait()
        os.close(self._out)


class Page:
    """One tab."""

    def __init__(self, browser: Browser, session: str, target: str) -> None:
        self._browser, self._session, self._target = browser, session, target

    def send(self, method: str, **parameters: Any) -> dict[str, Any]:
        return self._browser.send(method, self._session, **parameters)

    def size(self, width: int, height: int, dark: bool = False, still: bool = False) -> None:
        phone = width < 600
        self.send("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=phone)
        features = [("prefers-color-scheme", "dark" if dark else "light"), ("prefers-reduced-motion", "reduce" if still else "")]
        self.send("Emulation.setEmulatedMedia", features=[{"name": name, "value": value} for name, value in features])

    def run(self, script: str) -> Any:
        """The value of an expression; a promise is waited for."""
        answer = self.send("Runtime.evaluate", expression=script, awaitPromise=True, returnByValue=True)
        assert "exceptionDetails" not in answer, answer["exceptionDetails"]
        return answer["result"].get("value")

    def wait(self, script: str) -> Any:
        """The first value of the expression that is not false, empty or nothing."""
        ends = time.monotonic() + DEADLINE_S
        while time.monotonic() < ends:
            if value := self.run(script):
                return value
            time.sleep(0.1)
        raise AssertionError(f"never came true: {script}\n{self.run('document.body.innerText')}")

    def key(self, key: str, code: int) -> None:
        text = {"Enter": "\r", " ": " "}.get(key, "")
        common = {"key": key, "code": {" ": "Space"}.get(key, key), "windowsVirtualKeyCode": code}
        self.send("Input.dispatchKeyEvent", type="keyDown" if text else "rawKeyDown", text=text, **common)
        self.send("Input.dispatchKeyEvent", type="keyUp", **common)

    def choose(self, selector: str, file: Path) -> None:
        root = self.send("DOM.getDocument")["root"]["nodeId"]
        node = self.send("DOM.querySelector", nodeId=root, selector=selector)["nodeId"]
        self.send("DOM.setFileInputFiles", nodeId=node, files=[str(file)])

    def spoken(self) -> list[tuple[str, str]]:
        """(role, name) of everything that a screen reader is told of."""
        nodes = self.send("Accessibility.getFullAXTree")["nodes"]
        return [(n["role"]["value"], n.get("name", {}).get("value", "")) for n in nodes if not n["ignored"]]

    def picture(self, path: Path, whole: bool = True) -> None:
        """A screenshot, as PNG."""
        path.write_bytes(base64.b64decode(self.send("Page.captureScreenshot", captureBeyondViewport=whole)["data"]))

    def complaints(self) -> list[str]:
        """Errors and warnings in the console, and exceptions that nobody caught."""
        found = []
        for event in self._browser.events:
            if event.get("sessionId") != self._session:
                continue
            what, parameters = event["method"], event["params"]
            if what == "Runtime.exceptionThrown":
                found.append(json.dumps(parameters["exceptionDetails"])[:400])
            elif what == "Log.entryAdded" and parameters["entry"]["level"] in ("error", "warning"):
                found.append(f"{parameters['entry']['text']} {parameters['entry'].get('url', '')}")
            elif what == "Runtime.consoleAPICalled" and parameters["type"] in ("error", "warning"):
                found.append(json.dumps(parameters["args"])[:400])
        return found

    def close(self) -> None:
        self._browser.send("Target.closeTarget", targetId=self._target)
