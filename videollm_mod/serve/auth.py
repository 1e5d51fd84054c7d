"""Who may talk to the server: nobody from elsewhere without a token, no page of another origin, no rebound host name.

A token comes as `Authorization: Bearer TOKEN`; over the WebSocket, where a browser cannot set headers, also as the
subprotocol `token.BASE64URL`. A file of tokens has one a line, `NAME TOKEN` or a bare token; a client sees only the
streams of its own name.
"""

from __future__ import annotations

import base64
import hmac
import ipaddress
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from videollm_mod.types import InputError

TOKEN_VARIABLE = "VIDEOLLM_MOD_TOKEN"
SHORTEST, LONGEST_NAME = 16, 80  # characters of a token, of a client's name
LOCAL = "local"  # the name of a client that needs no token
SUBPROTOCOL = "videollm-mod.v1"


class Refused(Exception):
    """The request is not let in; the message says why and is fit for the client."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status, self.message = status, message


@dataclass(frozen=True)
class Doors:
    """What is let in."""

    host: str  # that the server listens on
    tokens: Mapping[str, str]  # token -> client's name; empty: none needed
    origins: Sequence[str] = ()  # of other sites whose pages may talk to us, such as https://cameras.example

    def client(self, headers: Mapping[str, str], *, changes: bool) -> str:
        """The client's name. `changes`: the request is a WebSocket or alters something. Raises Refused."""
        self.check_host(headers.get("host", ""))
        self._check_origin(headers, changes)
        if not self.tokens:
            return LOCAL
        given = _given_token(headers).encode()
        name = None
        for token, owner in self.tokens.items():  # all of them are compared, so that time tells nothing
            if hmac.compare_digest(token.encode(), given):
                name = owner
        if name is None:
            raise Refused(401, "a token is needed: send it as `Authorization: Bearer TOKEN`.")
        return name

    def check_host(self, host: str) -> None:
        """A name that a foreign page had pointed at us (DNS rebinding) is not let in; a token does the same."""
        if self.tokens:
            return
        name = (urlsplit(f"//{host}").hostname or "") if _well_formed(host) else ""
        if name != self.host and not is_loopback(name):
            raise Refused(421, "this server does not go by that name; call it by its address.")

    def _check_origin(self, headers: Mapping[str, str], changes: bool) -> None:
        origin = headers.get("origin")
        if origin is None:  # no browser, or the page itself asking for a file
            if changes and headers.get("sec-fetch-site", "same-origin") not in ("same-origin", "none"):
                raise Refused(403, "pages of other sites may not do this.")
            return
        if origin in self.origins:
            return
        try:
            same = urlsplit(origin).netloc == headers.get("host", "") and origin.startswith(("http://", "https://"))
        except ValueError:
            same = False
        if not same:
            raise Refused(403, "pages of that origin may not talk to this server; see --allow-origin.")


def _well_formed(host: str) -> bool:
    try:
        urlsplit(f"//{host}").hostname  # noqa: B018
    except ValueError:
        return False
    return True


def _given_token(headers: Mapping[str, str]) -> str:
    scheme, _, token = headers.get("authorization", "").partition(" ")
    if scheme.lower() == "bearer" and token:
        return token.strip()
    for word in headers.get("sec-websocket-protocol", "").split(","):
        if word.strip().startswith("token."):
            text = word.strip().removeprefix("token.")
            try:
                return base64.urlsafe_b64decode(text + "=" * (-len(text) % 4)).decode()
            except ValueError:
                return ""
    return ""


def token_subprotocol(token: str) -> str:
    """A token as a WebSocket subprotocol."""
    return "token." + base64.urlsafe_b64encode(token.encode()).decode().rstrip("=")


def is_loopback(host: str) -> bool:
    """Whether a name or address is this machine alone."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def read_tokens(path: Path | None, environment: Mapping[str, str] = os.environ) -> dict[str, str]:
    """Token -> name, from a file and from the environment. Raises InputError for a file that is none, a short token."""
    found: dict[str, str] = {}
    if path is not None:
        try:
            lines = path.read_text(encoding="utf-8").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise InputError(f"--token-file {path} cannot be read; give a text file with one token a line.") from error
        for number, line in enumerate(lines, 1):
            words = line.split()
            if not words or line.startswith("#"):
                continue
            if len(words) > 2:
                raise InputError(f"--token-file {path}: line {number} is not NAME TOKEN; correct it.")
            found[words[-1]] = words[0] if len(words) == 2 else f"client{number}"
        if not found:
            raise InputError(f"--token-file {path} holds no token; write one a line.")
    own = environment.get(TOKEN_VARIABLE)
    if own:
        found[own] = "owner"
    for token, name in found.items():
        if len(token) < SHORTEST or not token.isascii():
            which = f"in {TOKEN_VARIABLE}" if token == own else f"of {name} in --token-file {path}"
            wrong = "is too short" if token.isascii() else "is not ASCII"
            raise InputError(f"the token {which} {wrong}; give {SHORTEST} ASCII characters or more.")
        if len(name) > LONGEST_NAME:
            raise InputError(f"the name {name[:20]}... of a token is too long; give {LONGEST_NAME} characters at most.")
    return found
