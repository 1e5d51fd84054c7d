"""The page in a real browser, its camera the bundled clip. With SCREENSHOTS=docs it takes the README's pictures."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from pathlib import Path

import av
import numpy as np
import pytest
from chromium import Page, chromium, program
from serve_cases import Running, serving, until

import videollm_mod as vm
from videollm_mod.serve.sources import Rules

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(program() is None, reason="no Chromium here: apt-get install chromium"),
]

CLIP = Path(vm.__file__).parent / "assets" / "demo.mp4"
RATE = 8  # pictures per second of the fake camera


def to_y4m(clip: Path, path: Path, start: float, end: float) -> None:
    """A piece of a clip as the uncompressed video that Chromium takes for a camera."""
    with path.open("wb") as file:
        for one in vm.open_video(clip, fps=RATE, start=start, end=end):
            height, width = one.image.shape[:2]
            if not file.tell():
                file.write(f"YUV4MPEG2 W{width} H{height} F{RATE}:1 Ip A1:1 C420jpeg\n".encode())
            planes = av.VideoFrame.from_ndarray(np.ascontiguousarray(one.image), "rgb24").reformat(format="yuvj420p")
            file.write(b"FRAME\n" + planes.to_ndarray().tobytes())


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    rules = Rules(("rtsp://127.0.0.1:*",), private=True)
    with serving(tmp_path_factory.mktemp("page"), model=vm.load("tiny"), rules=rules, may_store_frames=True) as running:
        yield running


@pytest.fixture
def page(tmp_path: Path) -> Iterator[Page]:
    camera = tmp_path / "camera.y4m"
    to_y4m(CLIP, camera, 6.0, 30.0)
    (tmp_path / "downloads").mkdir()
    with chromium(tmp_path / "profile", camera, downloads=tmp_path / "downloads") as tab:
        yield tab


def photograph(page: Page, name: str) -> None:
    if folder := os.environ.get("SCREENSHOTS"):
        page.picture(Path(folder) / name)


SAID = "[...document.querySelectorAll('.timeline > li.narration, .timeline > li.answer')].map(li => li.textContent)"


def test_the_page_narrates_its_camera_answers_shows_kept_tokens_and_goes_on_after_a_loss(
    server: Running, page: Page, tmp_path: Path
) -> None:
    page.looks(1360, 860)
    page.open(server.url)
    page.until("document.getElementById('status-text').textContent === 'Ready'")
    photograph(page, "page_start.png")
    page.run("document.getElementById('use-camera').click()")
    page.until("document.body.dataset.state === 'live'")
    page.until(f"{SAID}.length >= 2")
    shown = page.run("[...document.querySelectorAll('.timeline > li.narration')].map(li => Number(li.dataset.time))")
    stored = server.hub.store.events(page.run("S.stream"))
    assert shown == [round(one.event.time, 3) for one in stored][: len(shown)]

    # a question, by keyboard alone
    page.key("a")
    page.until("document.activeElement.id === 'ask'")
    page.write("How many things are there?")
    page.key("Enter")
    page.until("document.querySelector('.timeline > li.answer .words') !== null")
    page.key("Escape")

    # what the layers kept changes with the slider
    page.key("k")
    page.until("S.kept !== null")
    page.run("S.review = null; drawOverlay()")
    drawn = "document.getElementById('overlay').toDataURL()"
    pictures = []
    for _ in range(3):
        pictures.append(page.run(f"drawOverlay(), {drawn}"))
        page.key("ArrowRight")
    assert len(set(pictures)) == 3 and page.run("document.getElementById('layer-name').textContent") == "3"
    photograph(page, "page.png")
    page.looks(1360, 860, scheme="dark")
    photograph(page, "page_dark.png")
    page.looks(390, 844, scheme="dark", phone=True)
    assert page.run("document.documentElement.scrollWidth") <= 390  # nothing hangs over on a phone
    photograph(page, "page_phone.png")
    page.looks(1360, 860)

    # the connection is cut, and comes back into the same stream
    stream, frames = page.run("S.stream"), page.run("S.watched")
    page.run("S.socket.close()")
    page.until("document.body.dataset.state === 'lost'")
    assert "trying again" in page.run("document.getElementById('notice-text').textContent").lower()
    page.until("document.body.dataset.state === 'live'")
    page.until(f"S.watched > {frames}")
    assert page.run("S.stream") == stream and len(server.hub.live) == 1

    # search goes back to where it was said
    page.key("/")
    page.write("when did the triangle come?")
    page.key("Enter")
    page.until("!document.getElementById('found').hidden && S.review !== null")
    page.key("Escape")
    page.key("Escape")
    page.until("S.review === null")

    # and what was said is taken home
    page.run("document.querySelector('[data-format=srt]').click()")
    files = tmp_path / "downloads"
    saved = until(lambda: [one for one in files.iterdir() if one.suffix == ".srt"], 30)
    assert "-->" in saved[0].read_text()
    page.run("document.getElementById('stop').click()")
    until(lambda: not server.hub.live)
    assert page.complaints() == [] and page.hosts() == {f"127.0.0.1:{server.port}"}


def test_a_file_is_narrated_at_the_times_at_which_things_happen(server: Running, page: Page) -> None:
    """The page against the session on the same clip; the browser encodes anew, so times may be a frame off."""
    session = vm.StreamSession(vm.load("tiny"))
    wanted = [event for one in vm.open_video(CLIP, fps=2, end=20) for event in session.push(one)]
    page.open(server.url)
    page.until("document.getElementById('status-text').textContent === 'Ready'")
    root = page.call("DOM.getDocument")["root"]["nodeId"]
    node = page.call("DOM.querySelector", nodeId=root, selector="#file")["nodeId"]
    page.call("DOM.setFileInputFiles", files=[str(CLIP)], nodeId=node)
    page.until("document.body.dataset.state === 'live'")
    page.until("document.getElementById('video').currentTime > 20.5", 90)
    time.sleep(1)
    said = page.run("[...document.querySelectorAll('.timeline > li.narration')].map(li => Number(li.dataset.time))")
    said = [when for when in said if when < 20]
    assert len(said) == len(wanted)
    assert all(abs(when - event.time) <= 0.5 for when, event in zip(said, wanted))
    page.run("document.getElementById('stop').click()")
    until(lambda: not server.hub.live)


def test_a_refused_camera_and_a_full_server_are_told_plainly(server: Running, tmp_path: Path) -> None:
    with chromium(tmp_path / "profile", refuse=True) as page:
        page.open(server.url)
        page.until("document.getElementById('status-text').textContent === 'Ready'")
        page.run("document.getElementById('use-camera').click()")
        assert "refused" in page.until("document.getElementById('notice-text').textContent")
    camera = tmp_path / "camera.y4m"
    to_y4m(CLIP, camera, 6.0, 8.0)
    server.hub.max_streams, before = 0, server.hub.max_streams
    try:
        with chromium(tmp_path / "other", camera) as page:
            page.open(server.url)
            page.until("document.getElementById('status-text').textContent === 'Ready'")
            page.run("document.getElementById('use-camera').click()")
            page.until("document.body.dataset.state === 'refused'")
            assert "full" in page.run("document.getElementById('notice-text').textContent")
    finally:
        server.hub.max_streams = before
