"""The Python client: `vm.connect(address)` gives a stream that is used as a StreamSession is.

    with vm.connect("http://127.0.0.1:8000") as stream:
        for frame in vm.open_video("clip.mp4", fps=stream.fps):
            for event in stream.push(frame):
                print(event.time, event.text)
        print(stream.ask("What happened last?").text)

When the connection is lost it connects again and goes on in the same stream. One caller, one thread.
"""

from __future__ import annotations

import io
import time
from collections import deque
from collections.abc import Iterator
from types import TracebackType
from typing import Any
from urllib.parse import urlsplit

import numpy as np
from PIL import Image
from pydantic import ValidationError

from videollm_mod.serve import protocol
from videollm_mod.serve.auth import SUBPROTOCOL
from videollm_mod.types import Frame, InputError, StreamEvent

LARGEST = 2**20  # bytes of a message from the server
MENDS = {  # what the options may be
    "stream": "the id of a stream, 22 characters",
    "threshold": "a probability from 0 to 1",
    "window": "seconds above 0",
    "title": "200 characters at most",
}
FIRST_PAUSE, LONGEST_PAUSE = 0.2, 5.0  # s between two tries to connect


class ServerFull(InputError):
    """The server has no room for another stream; `retry_after` seconds may help."""

    def __init__(self, message: str, retry_after: float | None) -> None:
        super().__init__(message)
        self.retry_after = retry_after


class StreamLost(InputError):
    """The server ended the stream, or could not be reached again; what it said is stored."""


class ServerUnreachable(InputError, ConnectionError):
    """Nobody answers at the server's address, or the connection was lost before anything was said."""


class LiveStream:
    """A stream on a server. Attributes: `id`, `fps`, `welcome` (what the server said of it), `kept`, `meters`."""

    def __init__(
        self,
        url: str,
        *,
        token: str | None = None,
        stream: str | None = None,
        threshold: float | None = None,
        window: float | None = None,
        record_kept: bool = False,
        store_frames: bool = False,
        title: str = "",
        timeout: float = 30.0,
        quality: int = 92,
        max_side: int = 1280,
    ) -> None:
        """url: the server's, http(s):// or ws(s)://. stream: the `id` of one to go on in.

        timeout: seconds to wait for an answer, and to try to come back. quality, max_side: of the JPEGs that are sent.
        Raises InputError; of its kinds ServerUnreachable (also a ConnectionError), ServerFull, or StreamLost.
        """
        parts = urlsplit(url)
        scheme = {"http": "ws", "https": "wss", "ws": "ws", "wss": "wss"}.get(parts.scheme)
        if scheme is None or not parts.hostname:
            raise InputError(f"{url} is no server's address; give one such as http://127.0.0.1:8000.")
        self._url = f"{scheme}://{parts.netloc}{parts.path.rstrip('/')}/live"
        self._token, self._timeout, self._quality, self._max_side = token, timeout, quality, max_side
        self._given = url
        try:
            self._wish = protocol.Open(
                stream=stream, threshold=threshold, window=window, policy="all", kept=record_kept,
                store_frames=store_frames, title=title,
            )  # fmt: skip
        except ValidationError as error:
            name = {"kept": "record_kept"}.get(str(error.errors()[0]["loc"][0]), str(error.errors()[0]["loc"][0]))
            given = str(error.errors()[0]["input"])[:60]
            raise InputError(f"{name} {given} cannot be; give {MENDS.get(name, 'True or False')}.") from None
        self._socket: Any = None
        self._said: deque[StreamEvent] = deque()  # that nobody has been given yet
        self._last = 0  # number of the newest event
        self._closed = False
        self._decided: protocol.Decision | None = None
        self.kept: dict[int, np.ndarray] = {}  # layer -> (1 + h * w,) bool, of the newest frame
        self.meters: protocol.Meters | None = None
        self.welcome = self._connect()

    # -- the public face -----------------------------------------------------------------------------------------------

    @property
    def id(self) -> str:
        return self.welcome.stream

    @property
    def fps(self) -> float:
        """Frames per second that the model was trained on."""
        return self.welcome.fps

    def push(self, frame: Frame) -> list[StreamEvent]:
        """Have one frame watched: [] while the model keeps silent, else what it says about it."""
        picture = protocol.pack_frame(frame.time, self._encode(frame.image))
        sent = False
        while True:
            try:
                if not sent or self.welcome.time < frame.time:  # after a loss: if it has not arrived
                    self._send(picture)
                    sent = True
                self._decided = None
                self._until(lambda: self._decided is not None and self._decided.time >= frame.time)
                assert self._decided is not None
                if self._decided.speaks:
                    self._until(lambda: any(event.time >= frame.time for event in self._said))
                return self._take()
            except ServerUnreachable:
                self._come_back()
                if self.welcome.time >= frame.time and not self._decided:
                    return self._take()  # it arrived; what was said of it has come with the stored events, or will

    def ask(self, text: str, time: float | None = None) -> StreamEvent:
        """Put a question; returns the answer. Events that were said meanwhile come with the next `push`."""
        words = " ".join(text.split())
        if not words:
            raise InputError("the question is empty; ask something.")
        question = protocol.Ask(text=words, time=time).model_dump_json()
        while True:
            try:
                self._send(question)
                self._until(lambda: any(event.question == words for event in self._said))
                answer = next(event for event in self._said if event.question == words)
                self._said.remove(answer)
                return answer
            except ServerUnreachable:
                self._come_back()

    def events(self) -> Iterator[StreamEvent]:
        """Everything that is said from now on, as it comes, until the stream ends: of a source the server watches."""
        while not self._closed:
            while self._said:
                yield self._said.popleft()
            try:
                self._read(None)
            except ServerUnreachable:
                self._come_back()
            except StreamLost:
                if not self._closed:
                    raise
        yield from self._take()

    def close(self) -> None:
        """End the stream; what was said stays stored. May be called again."""
        if self._socket is None:
            return
        try:
            if not self._closed:
                self._socket.send(protocol.Close().model_dump_json())
                while not self._closed:
                    self._read(5.0)
        except Exception as error:
            if not (isinstance(error, InputError | TimeoutError) or _is_loss(error)):
                raise
        finally:
            self._socket.close()
            self._socket = None

    def leave(self) -> None:
        """Hang up without ending the stream: `connect(url, stream=id)` goes on in it."""
        if self._socket is not None:
            self._socket.close()
            self._socket = None

    def __enter__(self) -> LiveStream:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    # -- the connection ------------------------------------------------------------------------------------------------

    def _connect(self) -> protocol.Welcome:
        from websockets.sync.client import connect as open_socket

        headers = {"Authorization": f"Bearer {self._token}"} if self._token else None
        try:
            opening = open_socket(
                self._url, additional_headers=headers, subprotocols=[SUBPROTOCOL],  # type: ignore[list-item]
                open_timeout=self._timeout, max_size=LARGEST, compression=None,
            )  # fmt: skip
            self._socket = opening.__enter__()  # older versions of websockets have connected already
        except Exception as error:
            status = getattr(getattr(error, "response", None), "status_code", None)
            if status in (401, 403):
                raise InputError("the server did not let us in; give its token.") from error
            if isinstance(error, OSError | TimeoutError) or _is_loss(error) or status is not None:
                raise ServerUnreachable(
                    f"{self._given} cannot be reached; check the address and that the server runs."
                ) from error
            raise
        self._socket.send(self._wish.model_dump_json())
        message = self._receive(self._timeout)
        if isinstance(message, protocol.Failure):
            self._socket.close()
            if message.code == "full":
                raise ServerFull(message.message, message.retry_after)
            raise InputError(message.message)
        if not isinstance(message, protocol.Welcome):
            raise InputError("the server began with something else than a welcome; upgrade the older of the two.")
        return message

    def _come_back(self) -> None:
        """Connect again and go on in the stream. Raises StreamLost after `timeout` seconds."""
        self.leave()
        self._wish = self._wish.model_copy(update={"stream": self.id, "after": self._last})
        pause, until = FIRST_PAUSE, time.monotonic() + self._timeout
        while True:
            try:
                self.welcome = self._connect()
                return
            except ServerUnreachable as error:
                if time.monotonic() + pause > until:
                    raise StreamLost(f"{error} The stream was {self.id}.") from error
                time.sleep(pause)
                pause = min(2 * pause, LONGEST_PAUSE)

    def _until(self, done: Any) -> None:
        """Read messages until something has come. Raises InputError for what the server refused."""
        until = time.monotonic() + self._timeout
        while not done():
            if time.monotonic() > until:
                raise StreamLost(f"the server said nothing for {self._timeout:g} s; the stream is {self.id}.")
            self._read(self._timeout)

    def _read(self, timeout: float | None) -> None:
        """Take one message in."""
        message = self._receive(timeout)
        if isinstance(message, protocol.Event):
            self._last = max(self._last, message.id)
            self._said.append(protocol.stream_event(message))
        elif isinstance(message, protocol.Decision):
            self._decided = message
        elif isinstance(message, protocol.Kept):
            h, w = self.welcome.grid
            self.kept = protocol.unpack_kept(message.layers, 1 + h * w)
        elif isinstance(message, protocol.Meters):
            self.meters = message
        elif isinstance(message, protocol.Failure):
            raise InputError(message.message)
        elif isinstance(message, protocol.Closed):
            self._closed = True
            raise StreamLost(f"the server ended the stream: {message.reason}")

    def _receive(self, timeout: float | None) -> protocol.ServerMessage:
        try:
            return protocol.read_server(self._socket.recv(timeout=timeout))
        except TimeoutError:
            raise StreamLost(f"the server said nothing for {timeout:g} s.") from None
        except Exception as error:
            if _is_loss(error):
                raise ServerUnreachable("the connection was lost.") from error
            raise

    def _send(self, message: str | bytes) -> None:
        try:
            self._socket.send(message)
        except Exception as error:
            if _is_loss(error):
                raise ServerUnreachable("the connection was lost.") from error
            raise

    def _take(self) -> list[StreamEvent]:
        said = list(self._said)
        self._said.clear()
        return said

    def _encode(self, image: np.ndarray) -> bytes:
        picture = Image.fromarray(image)
        # more than the model looks at is not worth sending
        most = min(self._max_side, max(256, 4 * self.welcome.picture))
        if max(picture.size) > most:
            picture.thumbnail((most, most), Image.Resampling.BOX)
        buffer = io.BytesIO()
        picture.save(buffer, "JPEG", quality=self._quality, subsampling=0)
        return buffer.getvalue()


def _is_loss(error: Exception) -> bool:
    from websockets.exceptions import ConnectionClosed, InvalidHandshake

    return isinstance(error, ConnectionClosed | InvalidHandshake | OSError)


def connect(url: str, **options: Any) -> LiveStream:
    """A stream on the server at `url`; see LiveStream for the options."""
    return LiveStream(url, **options)
