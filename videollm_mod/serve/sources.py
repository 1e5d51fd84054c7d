"""Cameras that the server watches itself: which addresses it may open, and how it goes on when one is lost.

Addresses come from clients, so none is opened that the operator has not allowed by scheme and host; a name is resolved
once, every address it has is checked, and the connection goes to what was checked (no rebinding). Redirects are not
followed, playlists not opened.
"""

from __future__ import annotations

import asyncio
import fnmatch
import ipaddress
import logging
import socket
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING
from urllib.parse import SplitResult, urlsplit

from videollm_mod.serve import protocol
from videollm_mod.serve.live import Live, Refusal
from videollm_mod.types import InputError

if TYPE_CHECKING:
    from videollm_mod.serve.hub import Hub
    from videollm_mod.video import VideoSource

log = logging.getLogger("videollm_mod.serve")

PORTS = {"rtsp": 554, "http": 80, "https": 443}
FIRST_PAUSE, LONGEST_PAUSE = 1.0, 60.0  # s between two tries; doubled at each failure
STEADY = 10.0  # s of pictures after which a source counts as sound, and its pauses begin anew
LONGEST_ADDRESS = 2000  # characters
WATCHED, HOOKS = ("rtsp", "http", "https"), ("http", "https")


@dataclass(frozen=True)
class Target:
    """An address that may be opened, and where it leads."""

    url: SplitResult
    ip: str
    port: int

    @property
    def host(self) -> str:
        """The name asked for, with its port if that is an unusual one."""
        name = self.url.hostname or ""
        name = f"[{name}]" if ":" in name else name
        return name if self.port == PORTS[self.url.scheme] else f"{name}:{self.port}"

    @property
    def pinned(self) -> str:
        """The address with the number in place of the name."""
        ip = f"[{self.ip}]" if ":" in self.ip else self.ip
        login = self.url.netloc.rpartition("@")[0]
        return self.url._replace(netloc=f"{login}@{ip}:{self.port}" if login else f"{ip}:{self.port}").geturl()


@dataclass(frozen=True)
class Rules:
    """Which addresses clients may name: patterns such as rtsp://10.0.0.*, https://*.example or rtsp://door:8554.

    Without a port the scheme's own is meant, with :* any.
    """

    allowed: Sequence[str] = ()
    private: bool = False  # whether addresses of the local network may be among them

    def __post_init__(self) -> None:
        for pattern in self.allowed:
            check_pattern(pattern)

    def check(self, address: str, schemes: Sequence[str] = WATCHED) -> SplitResult:
        """The parts of an allowed address. Raises InputError; looks nothing up."""
        if len(address) > LONGEST_ADDRESS or any(ord(letter) <= 32 or ord(letter) == 127 for letter in address):
            raise InputError("the address is too long or holds blanks; give one such as rtsp://camera.example/door.")
        try:
            url = urlsplit(address)
            host, port = url.hostname, url.port
        except ValueError:
            raise InputError("that is no address; give one such as rtsp://camera.example/door.") from None
        if url.scheme not in schemes or not host or "\\" in address:
            raise InputError(f"the address must begin with {' or '.join(f'{name}://' for name in schemes)} and a host.")
        if not any(_matches(pattern, url.scheme, host, port) for pattern in self.allowed):
            shown = f"[{host}]" if ":" in host else host
            shown += f":{port}" if port is not None else ""
            raise InputError(f"{url.scheme}://{shown} is not on this server's list of sources; see --allow-source.")
        return url

    def resolve(self, address: str, schemes: Sequence[str] = WATCHED) -> Target:
        """Look an allowed address up, once. Raises InputError if it cannot be found or leads where it may not."""
        url = self.check(address, schemes)
        port = url.port or PORTS[url.scheme]
        try:
            found = socket.getaddrinfo(url.hostname, port, type=socket.SOCK_STREAM)
        except (OSError, UnicodeError):
            raise InputError(f"the host {url.hostname} cannot be found; check the address.") from None
        numbers = [str(entry[4][0]) for entry in found]
        if not self.private and any(is_private(number) for number in numbers):
            raise InputError(f"{url.hostname} is in a private network; this server must allow that (--allow-private).")
        return Target(url, numbers[0], port)


def _matches(pattern: str, scheme: str, host: str, port: int | None) -> bool:
    rule, any_port = urlsplit(pattern.removesuffix(":*")), pattern.endswith(":*")
    right_port = any_port or (port or PORTS[scheme]) == (rule.port or PORTS[rule.scheme])
    return rule.scheme == scheme and right_port and fnmatch.fnmatchcase(host.lower(), (rule.hostname or "").lower())


def check_pattern(pattern: str) -> None:
    """Raise InputError for a pattern of --allow-source that can match nothing."""
    try:
        rule = urlsplit(pattern.removesuffix(":*"))
        rule.port  # noqa: B018
    except ValueError:
        rule = urlsplit("")
    if rule.scheme not in PORTS or not rule.hostname or rule.path.strip("/"):
        raise InputError(f"--allow-source {pattern} is not SCHEME://HOST[:PORT]; write for example rtsp://10.0.0.*")


def is_private(number: str) -> bool:
    """Whether an IP address is none of the public internet's; addresses that wrap another count as that one."""
    address = ipaddress.ip_address(number.partition("%")[0])
    if isinstance(address, ipaddress.IPv6Address):
        inner = address.ipv4_mapped or address.sixtofour or (address.teredo and address.teredo[1])
        if address in ipaddress.ip_network("64:ff9b::/96"):  # NAT64
            inner = ipaddress.IPv4Address(int(address) & 0xFFFFFFFF)
        if inner:
            return is_private(str(inner))
    return not address.is_global or address.is_multicast


def hidden(address: str) -> str:
    """An address without its password, for people and for the store."""
    url = urlsplit(address)
    login, at, place = url.netloc.rpartition("@")
    return url._replace(netloc=f"{login.partition(':')[0]}:***@{place}" if at else place).geturl()


def open_target(target: Target, fps: float) -> VideoSource:
    """The video at a checked address; FFmpeg connects to the number and tells the name."""
    from videollm_mod.video.decode import Decoder
    from videollm_mod.video.opening import FORMATS, Address
    from videollm_mod.video.source import NETWORK_TIMEOUT, PROTOCOLS, VideoSource

    scheme = target.url.scheme
    options, formats = {"rtsp_flags": "prefer_tcp"}, "rtsp,sdp,rtp,mpegts"
    if scheme != "rtsp":
        options, formats = {"headers": f"Host: {target.host}\r\n", "max_redirects": "0"}, FORMATS
        if scheme == "https":
            options["verifyhost"] = target.url.hostname or ""
    name = f"{scheme}://{target.host}"
    address = Address(
        target.pinned, name, PROTOCOLS[scheme], formats, options=options, timeout=NETWORK_TIMEOUT, live=scheme == "rtsp"
    )
    return VideoSource(Decoder(address), fps, 0.0, None)


class Watcher:
    """Follows one source into one stream, in a thread of its own: opens it, pushes its frames, opens it again.

    It ends when the stream has: with its next picture, or a timeout.
    """

    def __init__(self, hub: Hub, live: Live, address: str, rules: Rules, fps: float) -> None:
        self._hub, self._live, self._address, self._rules, self._fps = hub, live, address, rules, fps
        self._loop = asyncio.get_running_loop()
        self._leaving = threading.Event()
        self._zero = time.monotonic() - max(0.0, live.taken)  # when the stream's time 0 was
        # a daemon: a dead camera keeps its thread inside FFmpeg until a timeout, and must not keep the server alive
        self._thread = threading.Thread(target=self._run, name="source", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def _run(self) -> None:
        pause = FIRST_PAUSE
        while not self._leaving.is_set():
            self._tell("connecting")
            began, why, finished = time.monotonic(), "", False
            try:
                finished = self._follow()
                why = "the source has ended"
            except Refusal as error:
                why, finished = error.message.rstrip("."), True
            except InputError as error:
                why = str(error).replace(self._address, hidden(self._address)).rstrip(".")
                finished = self._is_not_there(error)
            except Exception:
                log.exception("a source failed")
                why = "the source failed"
            if finished or self._leaving.is_set() or self._live.ended:
                break
            if time.monotonic() - began > STEADY:
                pause = FIRST_PAUSE
            self._hub.metrics.reconnects.inc()
            self._tell("waiting", f"{why}; trying again in {pause:g} s")
            self._leaving.wait(pause)
            pause = min(2 * pause, LONGEST_PAUSE)
        if not self._leaving.is_set() and not self._live.ended:
            self._tell("ended", why)
            self._await(self._hub.close(self._live, f"{why}."))

    def _is_not_there(self, error: InputError) -> bool:
        """Whether a web server has said that it will not give this, so that asking again is of no use."""
        import av

        final = (av.HTTPBadRequestError, av.HTTPUnauthorizedError, av.HTTPForbiddenError, av.HTTPNotFoundError)
        return urlsplit(self._address).scheme in HOOKS and isinstance(error.__cause__, final)

    def _follow(self) -> bool:
        """Push frames until the source ends; returns whether that was its end, and not a loss."""
        video = open_target(self._rules.resolve(self._address), self._fps)
        try:
            offset: float | None = None
            for frame in video:
                if self._leaving.is_set() or self._live.ended:
                    return True
                if offset is None:
                    self._tell("watching")
                    # time goes on through a loss, so that events lie where they happened
                    offset = time.monotonic() - self._zero - frame.time if video.live else 0.0
                    offset = max(offset, self._live.taken + 1 / self._fps - frame.time)
                self._await(self._hub.push(self._live, max(0.0, frame.time + offset), frame.image))
            if not video.live:
                self._await(self._hub.drain(self._live))
            return not video.live
        finally:
            video.close()

    def _tell(self, state: str, text: str = "") -> None:
        message = protocol.State(state=state, text=text)  # type: ignore[arg-type]

        def tell() -> None:
            self._live.state = message
            self._live.tell(message)

        try:
            self._loop.call_soon_threadsafe(tell)
        except RuntimeError:  # the server has ended
            self._leaving.set()

    def _await(self, work: object) -> None:
        """Run a coroutine in the loop and wait for it, unless the loop has ended."""
        try:
            asyncio.run_coroutine_threadsafe(work, self._loop).result(timeout=300)  # type: ignore[arg-type]
        except (RuntimeError, TimeoutError):
            self._leaving.set()
