"""Drives a headless Chromium through its DevTools protocol, over a WebSocket: no driver program, no library."""

from __future__ import annotations

import base64
import contextlib
import itertools
import json
import shutil
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
from websockets.sync.client import connect

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
PATIENCE = 60.0  # s


def program() -> str | None:
    """The browser that is installed, or None."""
    return next((found for name in NAMES if (found := shutil.which(name))), None)


class Page:
    """One tab."""

    def __init__(self, address: str, port: str) -> None:
        self._port = port
        self._socket = connect(address, max_size=2**26, compression=None)
        self._numbers = itertools.count(1)
        self._lock = threading.Lock()
        self.messages: list[dict[str, Any]] = []  # events, newest last

    def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        """One command; returns its result. Raises RuntimeError for what the browser refuses."""
        number = next(self._numbers)
        self._socket.send(json.dumps({"id": number, "method": method, "params": parameters}))
        until = time.monotonic() + PATIENCE
        while True:
            message = json.loads(self._socket.recv(timeout=max(0.1, until - time.monotonic())))
            if message.get("id") == number:
                if "error" in message:
                    raise RuntimeError(f"{method}: {message['error']}")
                return dict(message["result"])
            self.messages.append(message)

    def run(self, script: str) -> Any:
        """The value of a piece of JavaScript; promises are waited for."""
        done = self.call("Runtime.evaluate", expression=script, awaitPromise=True, returnByValue=True, userGesture=True)
        if "exceptionDetails" in done:
            raise RuntimeError(f"{script}: {done['exceptionDetails']}")
        return done["result"].get("value")

    def until(self, script: str, timeout: float = PATIENCE) -> Any:
        """Wait until a piece of JavaScript gives something true; returns it."""
        end = time.monotonic() + timeout
        while not (value := self.run(script)):
            assert time.monotonic() < end, f"it did not come to pass: {script}"
            time.sleep(0.1)
        return value

    def open(self, url: str) -> None:
        self.call("Page.enable")
        self.call("Runtime.enable")
        self.call("Log.enable")
        self.call("Network.enable")
        self.call("Page.navigate", url=url)
        self.until("document.readyState === 'complete'")

    def another(self) -> Page:
        """A second tab of the same browser, in a window of its own."""
        made = self.call("Target.createTarget", url="about:blank", newWindow=True)["targetId"]
        return Page(f"ws://127.0.0.1:{self._port}/devtools/page/{made}", self._port)

    def looks(self, width: int, height: int, *, scheme: str = "light", phone: bool = False) -> None:
        """Size of the window, and light or dark."""
        self.call("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=phone)
        self.call("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}])

    def key(self, key: str) -> None:
        text = {"text": key} if len(key) == 1 else {}
        codes = {"ArrowRight": 39, "ArrowLeft": 37, "Escape": 27, " ": 32, "Enter": 13, "Tab": 9}
        code = codes.get(key, ord(key.upper()[0]))
        if key == "Enter":
            text = {"text": "\r"}
        self.call("Input.dispatchKeyEvent", type="keyDown", key=key, windowsVirtualKeyCode=code, **text)
        self.call("Input.dispatchKeyEvent", type="keyUp", key=key, windowsVirtualKeyCode=code)

    def write(self, text: str) -> None:
        self.call("Input.insertText", text=text)

    def picture(self, path: Path) -> None:
        """A screenshot, as PNG."""
        path.write_bytes(base64.b64decode(self.call("Page.captureScreenshot", format="png")["data"]))

    def complaints(self) -> list[str]:
        """Errors that the page's scripts and security policy caused."""
        found = [
            one["params"]["exceptionDetails"] for one in self.messages if one["method"] == "Runtime.exceptionThrown"
        ]
        logged = [one["params"]["entry"] for one in self.messages if one["method"] == "Log.entryAdded"]
        return [str(one) for one in found] + [
            entry["text"]
            for entry in logged
            if entry["level"] == "error" and entry["source"] in ("javascript", "security")
        ]

    def hosts(self) -> set[str]:
        """Hosts that were asked for anything."""
        sent = [
            one["params"]["request"]["url"] for one in self.messages if one["method"] == "Network.requestWillBeSent"
        ]
        return {url.split("/")[2] for url in sent if url.startswith(("http:", "https:", "ws:", "wss:"))}


@contextlib.contextmanager
def chromium(
    folder: Path, camera: Path | None = None, *, refuse: bool = False, downloads: Path | None = None
) -> Iterator[Page]:
    """A browser with a fake camera that plays a .y4m file again and again; `refuse`: it may not be used.

    Asked for a screen, it gives the tab that asks.
    """
    found = program()
    assert found is not None
    words = [
        found, "--headless=new", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking",
        "--disable-dev-shm-usage", "--mute-audio", "--remote-debugging-port=0", f"--user-data-dir={folder}",
        "--auto-accept-this-tab-capture", "--use-fake-device-for-media-stream",
        "--autoplay-policy=no-user-gesture-required", "--remote-allow-origins=*",
    ]  # fmt: skip
    words += ["--deny-permission-prompts"] if refuse else ["--use-fake-ui-for-media-stream"]
    if camera is not None:
        words.append(f"--use-file-for-fake-video-capture={camera}")
    process = subprocess.Popen([*words, "about:blank"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        told, until = folder / "DevToolsActivePort", time.monotonic() + PATIENCE
        while not (told.exists() and told.read_text().count("\n")):
            assert time.monotonic() < until and process.poll() is None, "the browser did not start"
            time.sleep(0.1)
        port = told.read_text().splitlines()[0]
        tabs = httpx.get(f"http://127.0.0.1:{port}/json/list").json()
        page = Page(next(tab["webSocketDebuggerUrl"] for tab in tabs if tab["type"] == "page"), port)
        if downloads is not None:
            page.call("Browser.setDownloadBehavior", behavior="allow", downloadPath=str(downloads))
        yield page
    finally:
        process.kill()
        process.wait()
