"""The page in a real browser, its camera the bundled clip. With SCREENSHOTS=docs it takes the README's pictures."""

from __future__ import annotations

import json
import os
import socket
import time
from collections.abc import Iterator
from pathlib import Path

import av
import gstreamer_camera
import numpy as np
import pytest
from chromium import Page, chromium, program
from gstreamer_camera import GStreamerCamera
from serve_cases import Cable, Running, serving, until

import videollm_mod as vm
from videollm_mod.serve.auth import Doors
from videollm_mod.serve.hub import Hub
from videollm_mod.serve.server import Server
from videollm_mod.serve.sources import Rules
from videollm_mod.serve.store import Store

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
TIMES = "[...document.querySelectorAll('.timeline > li.narration')].map(li => Number(li.dataset.time))"
STATE = "document.body.dataset.state"
NOTICE = "document.getElementById('notice-text').textContent"
READY = "document.getElementById('status-text').textContent === 'Ready'"
WHERE = "document.activeElement.id || document.activeElement.dataset.format || document.activeElement.textContent"


def press(page: Page, name: str) -> None:
    page.run(f"document.getElementById('{name}').click()")


def tab_to(page: Page, wanted: str) -> None:
    """Press the Tab key until something has the focus, as somebody without a mouse does; it must be seen to have it."""
    for _ in range(60):
        page.key("Tab")
        if page.run(WHERE) == wanted:
            assert page.run("getComputedStyle(document.activeElement).outlineStyle") == "solid"
            return
    raise AssertionError(f"{wanted} is not to be reached by keyboard")


def fits(page: Page, width: int) -> bool:
    """Whether nothing hangs over the edge of the page."""
    return bool(page.run("document.documentElement.scrollWidth") <= width)


def test_the_page_narrates_its_camera_answers_shows_kept_tokens_and_exports(
    server: Running, page: Page, tmp_path: Path
) -> None:
    page.looks(390, 844, phone=True)
    page.open(server.url)
    page.until(READY)
    assert fits(page, 390)
    page.looks(1360, 860)
    photograph(page, "page_start.png")
    press(page, "store")
    press(page, "use-camera")
    page.until(f"{STATE} === 'live'")
    page.until(f"{SAID}.length >= 3")
    shown = page.run(TIMES)
    stored = server.hub.store.events(page.run("S.stream"))
    assert shown == [round(one.event.time, 3) for one in stored][: len(shown)]

    # a question
    page.key("a")
    page.until("document.activeElement.id === 'ask'")
    page.write("What is in view?")
    page.key("Enter")
    answer = page.until("(document.querySelector('.timeline > li.answer .words') || {}).textContent")
    page.key("Escape")
    assert answer in [one.event.text for one in server.hub.store.events(page.run("S.stream"))]

    # what the layers kept lies over the picture, and changes with the slider
    press(page, "show-kept")
    page.until("S.kept !== null && document.getElementById('stage').classList.contains('legend')")
    page.key("ArrowRight")
    page.key("ArrowRight")
    time.sleep(0.5)  # the newest sentence has come into view
    photograph(page, "page.png")
    page.looks(1360, 860, scheme="dark")
    time.sleep(0.5)
    photograph(page, "page_dark.png")
    page.looks(390, 844, scheme="dark", phone=True)
    assert fits(page, 390)
    time.sleep(0.5)
    photograph(page, "page_phone.png")
    page.looks(1360, 860)
    press(page, "pause")  # no picture comes now, so that only the slider changes what is drawn
    watched = page.until("S.watched === S.tick / S.welcome.fps && S.watched")
    slide = "[0, 1, 2].map(at => { $('layer').value = at; $('layer').oninput(); return $('overlay').toDataURL(); })"
    assert len(set(page.run(slide))) == 3 and page.run("document.getElementById('layer-name').textContent") == "3"
    time.sleep(1.5)
    assert page.run("S.watched") == watched and page.run(STATE) == "live"
    press(page, "pause")
    page.until(f"S.watched > {watched}")
    meters = "['m-fps', 'm-lag', 'm-dropped', 'm-kv', 'm-kv-of'].map(id => document.getElementById(id).textContent)"
    fps, lag, dropped, bytes_kept, of_dense = page.run(meters)
    assert 0 < float(fps) < 4 and float(lag) < 5000 and int(dropped) >= 0
    assert "MB" in bytes_kept and "MB" in of_dense and "%" in of_dense

    # search goes back to where it was said
    page.key("/")
    page.write("when did the triangle leave?")
    page.key("Enter")
    page.until("!document.getElementById('found').hidden && S.review !== null")
    assert "leaves" in page.run("document.querySelector('li.here .words').textContent")
    assert page.run("!document.getElementById('still').hidden")  # the picture of that time
    page.key("Escape")
    page.key("Escape")
    page.until("S.review === null")

    # and what was said is taken home
    files = tmp_path / "downloads"
    for kind in ("srt", "jsonl", "mp4"):
        page.run(f"document.querySelector('[data-format={kind}]').click()")
        until(lambda: [one for one in files.iterdir() if one.suffix == f".{kind}"], 60)  # noqa: B023
    name = {one.suffix: one for one in files.iterdir()}
    assert "-->" in name[".srt"].read_text()
    texts = [json.loads(line)["text"] for line in name[".jsonl"].read_text().splitlines()]
    assert answer in texts and len(texts) >= 4
    with av.open(str(name[".mp4"])) as film:
        assert sum(1 for _ in film.decode(video=0)) >= 10
    press(page, "stop")
    until(lambda: not server.hub.live)
    assert page.complaints() == [] and page.hosts() == {f"127.0.0.1:{server.port}"}


def test_everything_is_done_by_keyboard_alone(server: Running, page: Page, tmp_path: Path) -> None:
    page.open(server.url)
    page.until(READY)
    tab_to(page, "use-camera")
    page.key("Enter")
    page.until(f"{STATE} === 'live' && S.watched > 0")  # a question before any picture is refused
    page.key("a")
    page.write("How many things are there?")
    page.key("Enter")
    page.until("document.querySelector('.timeline > li.answer .words') !== null")
    page.key("Escape")
    page.key("k")
    page.until("S.kept !== null")
    layers = []
    for _ in range(3):
        layers.append(page.run("document.getElementById('layer-name').textContent"))
        page.key("ArrowRight")
    assert layers == ["all", "1", "3"]
    page.key(" ")
    page.until("S.paused")
    page.key(" ")
    page.until("!S.paused")
    page.until(f"{SAID}.length >= 2")
    tab_to(page, page.run("document.querySelector('.timeline > li button').textContent"))  # a sentence
    page.key("Enter")
    page.until("S.review !== null")
    page.key("Escape")
    page.until("S.review === null")
    tab_to(page, "Export")
    page.key("Enter")
    page.until("document.getElementById('export').open")
    tab_to(page, "srt")
    page.key("Enter")
    until(lambda: list((tmp_path / "downloads").glob("*.srt")), 30)
    tab_to(page, "stop")
    page.key("Enter")
    until(lambda: not server.hub.live)


def test_a_cut_connection_is_told_and_comes_back_in_the_same_stream_even_from_a_new_server(
    page: Page, tmp_path: Path
) -> None:
    def begin() -> Running:
        store = Store(str(tmp_path / "events.db"))
        return Running(Server(Hub(vm.load("tiny"), store), Doors("127.0.0.1", {})))

    first = begin()
    with Cable(first.port) as cable:
        page.looks(1360, 860)
        page.open(f"http://127.0.0.1:{cable.port}")
        page.until(READY)
        press(page, "use-camera")
        page.until(f"{STATE} === 'live' && {SAID}.length >= 1")
        stream, frames, said = page.run("[S.stream, S.watched, S.last]")

        cable.cut()
        page.until(f"{STATE} === 'lost'")
        assert "connection was lost" in page.run(NOTICE) and "Trying again in" in page.run(NOTICE)
        page.until("document.getElementById('badge-text').textContent.startsWith('NOT WATCHED')")
        page.until(f"{NOTICE}.includes('in 2 s')")  # it is tried again and again, at longer intervals
        cable.mend(first.port)
        page.until(f"{STATE} === 'live' && S.watched > {frames + 1}")
        assert page.run("S.stream") == stream and list(first.hub.live) == [stream]
        assert "has come back" in page.run("document.querySelector('.timeline > li.note').textContent")
        assert page.run(f"document.getElementById('notice').hidden && S.last >= {said}")

        cable.cut()
        first.stop()
        second = begin()
        try:
            cable.mend(second.port)
            page.until(f"{STATE} === 'live'")
            page.until("[...document.querySelectorAll('.timeline > li.note')].length === 2")
            note = page.run("[...document.querySelectorAll('.timeline > li.note')].pop().textContent")
            assert "goes on in a new one" in note and page.run("S.stream") == stream
            page.until(f"S.watched > {frames + 3} && S.welcome.reopened")
            numbers = [one.number for one in second.hub.store.events(stream)]
            assert numbers == list(range(1, len(numbers) + 1))
            press(page, "stop")
            until(lambda: not second.hub.live)
        finally:
            second.stop()


def test_a_token_is_asked_for_and_a_wrong_one_told(page: Page, tmp_path: Path) -> None:
    token = "a-token-of-anna-0123"
    with serving(tmp_path, doors=Doors("0.0.0.0", {token: "anna"}), model=vm.load("tiny")) as server:
        page.open(server.url)
        page.until("document.getElementById('login').open")
        for given, wrong in (("not-the-token-0123", True), (token, False)):
            page.until("document.activeElement.id === 'token'")
            page.write(given)
            page.key("Enter")
            if wrong:
                page.until("!document.getElementById('login-wrong').hidden && document.getElementById('login').open")
        page.until(READY)
        press(page, "use-camera")
        page.until("S.watched > 0")
        assert page.run("S.stream") in server.hub.live
        # a link that holds it; it does not stay in the address
        again = page.another()
        again.open(f"{server.url}/#token={token}")
        again.until(READY)
        assert token not in again.run("location.href")
        press(page, "stop")


def test_two_tabs_have_a_stream_each_and_a_screen_is_watched_as_a_camera_is(server: Running, page: Page) -> None:
    other = page.another()
    for tab, source in ((page, "use-camera"), (other, "use-screen")):
        tab.open(server.url)
        tab.until(READY)
        press(tab, source)
        tab.until(f"{STATE} === 'live' && S.watched > 1")
    streams = {tab.run("S.stream") for tab in (page, other)}
    assert len(streams) == 2 and set(server.hub.live) == streams
    for tab in (page, other):
        press(tab, "stop")
    until(lambda: not server.hub.live)


def test_an_address_is_watched_by_the_server_and_seen_on_the_page(server: Running, page: Page) -> None:
    if why := gstreamer_camera.missing():
        pytest.skip(why)
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    page.open(server.url)
    page.until(READY)
    with GStreamerCamera(CLIP, port) as camera:
        press(page, "use-address")
        page.write("http://elsewhere.example/door")
        page.key("Enter")
        assert "not on this server's list" in page.until(NOTICE)
        page.run("document.getElementById('address').value = ''")
        page.run("document.getElementById('address').focus()")
        page.write(camera.address)
        page.key("Enter")
        page.until(f"{STATE} === 'live' && document.getElementById('still').naturalWidth > 0")
        page.until(f"{SAID}.length >= 1")
        page.key("a")
        page.write("How many things are there?")
        page.key("Enter")
        page.until("document.querySelector('.timeline > li.answer .words') !== null")
        camera.kill()
        page.until(f"{STATE} === 'lost'")
        assert "trying again in" in page.run(NOTICE)
    with GStreamerCamera(CLIP, port):
        page.until(f"{STATE} === 'live'")
    press(page, "stop")
    until(lambda: not server.hub.live)


def test_a_file_is_narrated_at_the_times_at_which_things_happen(server: Running, page: Page) -> None:
    """The page against the session on the same clip; the browser encodes anew, so times may be a frame off."""
    session = vm.StreamSession(vm.load("tiny"))
    wanted = [event for one in vm.open_video(CLIP, fps=2, end=20) for event in session.push(one)]
    page.open(server.url)
    page.until(READY)
    root = page.call("DOM.getDocument")["root"]["nodeId"]
    node = page.call("DOM.querySelector", nodeId=root, selector="#file")["nodeId"]
    page.call("DOM.setFileInputFiles", files=[str(CLIP)], nodeId=node)
    page.until(f"{STATE} === 'live'")
    page.until("document.getElementById('video').currentTime > 20.5", 90)
    time.sleep(1)
    said = page.run(TIMES)
    said = [when for when in said if when < 20]
    assert len(said) == len(wanted)
    assert all(abs(when - event.time) <= 0.5 for when, event in zip(said, wanted))
    # and against what truly happens in the clip
    (line,) = CLIP.with_suffix(".jsonl").read_text().splitlines()
    segments = json.loads(line)["segments"]
    unasked = [one for one, last in zip(segments, [{}, *segments]) if "user" not in (one["role"], last.get("role"))]
    happened = [one["time"] for one in unasked if one["time"] < 19]
    assert len(happened) >= 3 and all(min(abs(when - true) for when in said) <= 1.0 for true in happened)

    # search brings the film to the time at which it was said
    page.key("/")
    page.write("when did the triangle leave?")
    page.key("Enter")
    page.until("S.review !== null && !document.getElementById('video').seeking")
    here = page.run("Number(document.querySelector('li.here').dataset.time)")
    assert here in said and abs(page.run("document.getElementById('video').currentTime") - here) < 0.1
    page.key("Escape")
    page.key("Escape")
    page.until("document.getElementById('video').currentTime > 20")
    press(page, "stop")
    until(lambda: not server.hub.live)


def test_a_refused_camera_and_a_full_server_are_told_plainly(server: Running, tmp_path: Path) -> None:
    with chromium(tmp_path / "profile", refuse=True) as page:
        page.open(server.url)
        page.until(READY)
        press(page, "use-camera")
        assert "refused" in page.until(NOTICE)
    camera = tmp_path / "camera.y4m"
    to_y4m(CLIP, camera, 6.0, 8.0)
    server.hub.max_streams, before = 0, server.hub.max_streams
    try:
        with chromium(tmp_path / "other", camera) as page:
            page.open(server.url)
            page.until(READY)
            press(page, "use-camera")
            page.until(f"{STATE} === 'refused'")
            assert "full" in page.run(NOTICE)
            press(page, "stop")  # back to the choice of sources
            assert page.run("!document.getElementById('welcome').hidden")
    finally:
        server.hub.max_streams = before
