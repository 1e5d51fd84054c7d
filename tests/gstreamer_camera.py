"""A real RTSP server, GStreamer's: it plays a clip from its beginning to each client; `gstreamer_camera.py PORT CLIP`.

It is a program of its own, run by the system's Python: Debian has its bindings there (`PACKAGES`). H.264 goes out as it
is in the file, in real time.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

PYTHON = "/usr/bin/python3"
PACKAGES = "gir1.2-gst-rtsp-server-1.0 gstreamer1.0-plugins-good python3-gi"
NEEDED = ("qtdemux", "rtph264pay")
PROBE = f"""
import gi
gi.require_version("GstRtspServer", "1.0")
from gi.repository import Gst, GstRtspServer
Gst.init(None)
assert all(map(Gst.ElementFactory.find, {NEEDED}))
"""


def missing() -> str | None:
    """Why there is no such server here, or None."""
    if Path(PYTHON).exists() and subprocess.run([PYTHON, "-c", PROBE], capture_output=True).returncode == 0:
        return None
    return f"no RTSP server here: apt-get install {PACKAGES}"


class GStreamerCamera:
    """The server as a process, until it is killed."""

    def __init__(self, clip: Path, port: int) -> None:
        self.address = f"rtsp://127.0.0.1:{port}/door"
        words = [PYTHON, str(Path(__file__)), str(port), str(clip)]
        self._process = subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
        assert self._process.stdout is not None
        assert self._process.stdout.readline() == b"ready\n", "the RTSP server did not start"

    def kill(self) -> None:
        """Without a word to its clients."""
        self._process.kill()
        self._process.wait()

    def __enter__(self) -> GStreamerCamera:
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()


def main(port: str, clip: str) -> None:
    import gi

    gi.require_version("GstRtspServer", "1.0")
    from gi.repository import GLib, Gst, GstRtspServer

    Gst.init(None)
    server = GstRtspServer.RTSPServer(service=port, address="127.0.0.1")
    factory = GstRtspServer.RTSPMediaFactory()
    factory.set_launch(f'( filesrc location="{clip}" ! qtdemux ! rtph264pay name=pay0 pt=96 config-interval=-1 )')
    server.get_mount_points().add_factory("/door", factory)
    assert server.attach(None)
    print("ready", flush=True)
    GLib.MainLoop().run()


if __name__ == "__main__":
    main(*sys.argv[1:])
