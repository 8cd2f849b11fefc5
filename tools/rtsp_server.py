"""An RTSP server for tests and demos: a moving test picture, or a video file, as a network camera would give it.

    /usr/bin/python3 tools/rtsp_server.py [--port 8554] [--codec h264|mjpeg] [--pattern ball] [--file VIDEO]
                                          [--size 640x480] [--fps 20] [--user USER --password PASSWORD]

It says `ready rtsp://127.0.0.1:8554/live` once it listens; port 0 takes a free one. The picture goes on for ever, the video
is played from its beginning for each client, once. It needs GStreamer's RTSP server and its Python binding, which come with
the system: sudo apt install python3-gi gir1.2-gst-rtsp-server-1.0 gstreamer1.0-plugins-good gstreamer1.0-plugins-ugly
"""

from __future__ import annotations

import argparse
import sys

ENCODERS = {
    "h264": "x264enc tune=zerolatency speed-preset=ultrafast key-int-max={fps} ! rtph264pay name=pay0 pt=96 config-interval=1",
    "mjpeg": "jpegenc ! rtpjpegpay name=pay0 pt=26",
}


def main() -> int:
    """Serve until the process is ended."""
    asked = _arguments()
    try:
        import gi

        gi.require_version("Gst", "1.0")
        gi.require_version("GstRtspServer", "1.0")
        from gi.repository import GLib, Gst, GstRtspServer
    except (ImportError, ValueError) as error:
        print(f"GStreamer's RTSP server is missing: {error}", file=sys.stderr)
        return 1
    Gst.init(None)
    server = GstRtspServer.RTSPServer()
    server.set_address("127.0.0.1")
    server.set_service(str(asked.port))
    factory = GstRtspServer.RTSPMediaFactory()
    factory.set_launch(f"( {pipeline(asked)} )")
    factory.set_shared(not asked.file)
    if asked.user:
        _protect(GstRtspServer, server, factory, asked)
    server.get_mount_points().add_factory("/live", factory)
    if not server.attach(None):
        print(f"port {asked.port} cannot be listened on", file=sys.stderr)
        return 1
    print(f"ready rtsp://127.0.0.1:{server.get_bound_port()}/live", flush=True)
    GLib.MainLoop().run()
    return 0


def pipeline(asked: argparse.Namespace) -> str:
    """The GStreamer pipeline of one stream."""
    width, height = asked.size.split("x")
    if asked.file:
        source = f'filesrc location="{asked.file}" ! decodebin'
    else:
        source = f"videotestsrc is-live=true pattern={asked.pattern}"
    form = f"video/x-raw,format=I420,width={width},height={height},framerate={asked.fps}/1"
    return f"{source} ! videoconvert ! videoscale ! videorate ! {form} ! {ENCODERS[asked.codec].format(fps=asked.fps)}"


def _protect(rtsp, server, factory, asked) -> None:  # type: ignore[no-untyped-def]
    """Let nobody in but the one user."""
    auth, token = rtsp.RTSPAuth(), rtsp.RTSPToken()
    token.set_string("media.factory.role", asked.user)
    auth.add_basic(rtsp.RTSPAuth.make_basic(asked.user, asked.password), token)
    permissions = rtsp.RTSPPermissions()
    for right in ("media.factory.access", "media.factory.construct"):
        permissions.add_permission_for_role(asked.user, right, True)
    factory.set_permissions(permissions)
    server.set_auth(auth)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--port", type=int, default=8554)
    parser.add_argument("--codec", choices=sorted(ENCODERS), default="h264")
    parser.add_argument("--pattern", default="ball", help="a pattern of videotestsrc: ball moves, red and blue do not")
    parser.add_argument("--file", default="")
    parser.add_argument("--size", default="640x480")
    parser.add_argument("--fps", type=int, default=20)
    parser.add_argument("--user", default="")
    parser.add_argument("--password", default="")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
