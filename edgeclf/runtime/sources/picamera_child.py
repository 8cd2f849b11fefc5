"""The child of picamera.py, run as a file: opens one camera with picamera2 and writes its pictures to standard output.

Each picture is JSON, `{"height": …, "width": …, "channels": …, "taken_s": …}`, filled up with spaces to HEAD_BYTES, and
its bytes, BGR. A failure is one such head, `{"error": …, "kind": "import" or "camera"}`, and the end. It ends too when its
standard input is closed, so that it never outlives its parent. It imports nothing of edgeclf.
"""

from __future__ import annotations

import contextlib
import json
import os
import sys
import threading
import time
from typing import Any, BinaryIO

HEAD_BYTES = 512


def main() -> int:
    """Capture until the parent goes away."""
    request = json.loads(sys.argv[1])
    threading.Thread(target=_end_with_parent, daemon=True).start()
    # What libraries print must not come between the pictures.
    with os.fdopen(os.dup(1), "wb", buffering=0) as out:
        os.dup2(2, 1)
        try:
            from picamera2 import Picamera2
        except Exception as error:  # a broken libcamera raises more than ImportError
            return _fail(out, "import", error)
        try:
            _capture(out, Picamera2, request)
        except BrokenPipeError:
            return 0
        except Exception as error:
            return _fail(out, "camera", error)
    return 0


def _capture(out: BinaryIO, opener: Any, request: dict[str, int]) -> None:
    known = opener.global_camera_info()
    if request["index"] >= len(known):
        names = ", ".join(f"{i} ({camera.get('Model', '?')})" for i, camera in enumerate(known)) or "none"
        raise RuntimeError(f"no camera {request['index']}; found: {names}")
    camera = opener(request["index"])
    # Its RGB888 is blue, green, red in memory. Without the queue, a picture is never older than the call for it.
    camera.configure(
        camera.create_video_configuration(
            main={"size": (request["width"], request["height"]), "format": "RGB888"},
            controls={"FrameRate": float(request["fps"])},
            queue=False,
        )
    )
    camera.start()
    try:
        while True:
            _write(out, camera.capture_array("main"))
    finally:
        with contextlib.suppress(Exception):
            camera.stop()
            camera.close()


def _write(out: BinaryIO, image: Any) -> None:
    taken_s = time.monotonic()  # the same clock in every process of the machine
    height, width = image.shape[:2]
    channels = image.shape[2] if image.ndim == 3 else 1
    _write_all(out, _head({"height": height, "width": width, "channels": channels, "taken_s": taken_s}))
    _write_all(out, memoryview(image.tobytes()))


def _fail(out: BinaryIO, kind: str, error: Exception) -> int:
    text = " ".join(str(error).split()) or type(error).__name__
    with contextlib.suppress(BrokenPipeError):
        _write_all(out, _head({"error": text.encode("ascii", "replace").decode()[:300], "kind": kind}))
    return 1


def _head(value: dict[str, Any]) -> memoryview:
    return memoryview(json.dumps(value).encode().ljust(HEAD_BYTES))


def _write_all(out: BinaryIO, data: memoryview) -> None:
    while data:
        data = data[out.write(data) :]


def _end_with_parent() -> None:
    # Whatever the camera is doing then: a hung capture would keep it open for ever.
    with contextlib.suppress(OSError):
        while os.read(0, 1024):
            pass
    os._exit(0)


if __name__ == "__main__":
    sys.exit(main())
