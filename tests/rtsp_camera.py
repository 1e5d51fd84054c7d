"""A camera for tests: a small RTSP server (RFC 2326) that sends H.264 in RTP over the same TCP connection.

Pictures are plain: grey level 40 in the first second, 80 in the second, and so on. One client at a time.
"""

from __future__ import annotations

import contextlib
import socket
import threading
import time

import av
import numpy as np

RATE = 10  # pictures per second
SDP = """v=0
o=- 0 0 IN IP4 127.0.0.1
s=camera
t=0 0
m=video 0 RTP/AVP 96
a=rtpmap:96 H264/90000
a=fmtp:96 packetization-mode=1
a=control:trackID=0
"""


class RtspCamera:
    """Serves `address` until it is left, or for `seconds` of video, then hangs up."""

    def __init__(self, seconds: float, port: int = 0) -> None:
        self.seconds = seconds
        self.sent = 0  # pictures
        self._stop = threading.Event()
        self._server = socket.create_server(("127.0.0.1", port))
        self.port = self._server.getsockname()[1]
        self.address = f"rtsp://127.0.0.1:{self.port}/door"
        self._thread = threading.Thread(target=self._serve, daemon=True)

    def __enter__(self) -> RtspCamera:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        with contextlib.suppress(OSError):
            self._server.shutdown(socket.SHUT_RDWR)  # wakes an `accept` that still waits
        self._server.close()
        self._thread.join(timeout=5)

    def _serve(self) -> None:
        try:
            client, _ = self._server.accept()
        except OSError:  # nobody came
            return
        with client:
            try:
                self._answer(client)
            except OSError:  # the client has gone
                return

    def _answer(self, client: socket.socket) -> None:
        reader = client.makefile("rb")
        while line := reader.readline():
            headers = {}
            while header := reader.readline().strip():
                name, _, value = header.decode().partition(":")
                headers[name.lower()] = value.strip()
            verb, body, more = line.split()[0].decode(), "", ""
            if verb == "OPTIONS":
                more = "Public: OPTIONS, DESCRIBE, SETUP, PLAY, TEARDOWN\r\n"
            elif verb == "DESCRIBE":
                body = SDP.replace("\n", "\r\n")
                more = "Content-Type: application/sdp\r\n"
            elif verb == "SETUP":
                more = "Transport: RTP/AVP/TCP;unicast;interleaved=0-1\r\nSession: 1\r\n"
            reply = f"RTSP/1.0 200 OK\r\nCSeq: {headers['cseq']}\r\n{more}Content-Length: {len(body)}\r\n\r\n{body}"
            client.sendall(reply.encode())
            if verb == "PLAY":
                self._play(client)
                return

    def _play(self, client: socket.socket) -> None:
        """FFmpeg packs the pictures into RTP and sends them to us by UDP; we hand them on by TCP."""
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as packets:
            packets.bind(("127.0.0.1", 0))
            packets.settimeout(0.02)
            port = packets.getsockname()[1]
            with av.open(f"rtp://127.0.0.1:{port}?pkt_size=1200", "w", format="rtp") as sender:
                stream = sender.add_stream("libx264", rate=RATE)
                stream.width = stream.height = 64
                stream.options = {"tune": "zerolatency", "preset": "ultrafast", "g": str(RATE)}
                began = time.monotonic()
                while not self._stop.is_set() and self.sent < self.seconds * RATE:
                    level = 40 * (1 + self.sent // RATE)
                    picture = av.VideoFrame.from_ndarray(np.full((64, 64, 3), level, np.uint8), "rgb24")
                    sender.mux(stream.encode(picture))
                    self.sent += 1
                    while True:
                        try:
                            packet = packets.recv(2048)
                        except TimeoutError:
                            break
                        client.sendall(b"$\x00" + len(packet).to_bytes(2, "big") + packet)
                    time.sleep(max(0.0, began + self.sent / RATE - time.monotonic()))
