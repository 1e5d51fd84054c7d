"""The routes: streams and what was said in them, search, export, OpenAI's form, health, and who is let in."""

from __future__ import annotations

import base64
import contextlib
import functools
import hashlib
import hmac
import io
import json
import logging
import re
import socket
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer, SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import gstreamer_camera
import httpx
import numpy as np
import pytest
from gstreamer_camera import GStreamerCamera
from PIL import Image
from rtsp_camera import RtspCamera
from serve_cases import PATIENCE, Running, frame, get, hear, opened, picture, post, say, serving, until
from stream_cases import tiny_model
from websockets.exceptions import InvalidStatus

import videollm_mod as vm
from videollm_mod.depth import DepthPlan
from videollm_mod.serve.app import FILES
from videollm_mod.serve.auth import SUBPROTOCOL, Doors, token_subprotocol
from videollm_mod.serve.guard import JsonLines
from videollm_mod.serve.limits import Bounds
from videollm_mod.serve.sources import Rules
from videollm_mod.serve.store import Store
from videollm_mod.stream.session import StreamSession
from videollm_mod.types import Frame
from videollm_mod.video import VideoWriter

CLIP = Path(vm.__file__).parent / "assets" / "demo.mp4"
TOKEN, OTHER = "a-token-of-anna-0123", "a-token-of-bert-4567"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    rules = Rules(("rtsp://127.0.0.1:*", "http://127.0.0.1:*"), private=True)
    with serving(tmp_path_factory.mktemp("http"), may_store_frames=True, rules=rules) as running:
        yield running


def spoken(server: Running, frames: int = 3, **wishes: Any) -> str:
    """A stream in which something was said of every frame; its id."""
    with server.socket() as connection:
        stream = str(opened(connection, threshold=1.0, policy="all", **wishes)["stream"])
        for number in range(frames):
            connection.send(frame(number / 2, seed=number))
            hear(connection, "event")
        say(connection, type="ask", text="What happened?")
        hear(connection, "event")
        say(connection, type="close")
        hear(connection, "closed")
    return stream


@contextlib.contextmanager
def file_server(folder: Path) -> Iterator[str]:
    """A web server with the files of a folder; its address."""

    class Files(SimpleHTTPRequestHandler):
        def log_message(self, *_: Any) -> None:
            return

    server = ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Files, directory=str(folder)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()


def test_what_was_said_is_listed_searched_exported_and_erased(server: Running) -> None:
    stream = spoken(server)
    with httpx.Client(base_url=server.url, timeout=PATIENCE) as web:
        row = web.get(f"/streams/{stream}").json()
        assert row["events"] == 4 and not row["alive"] and row["ended"] >= row["began"]
        events = [one["event"] for one in web.get(f"/streams/{stream}/events").json()["events"]]
        assert [event["id"] for event in events] == [1, 2, 3, 4] and events[3]["question"] == "What happened?"
        assert len(web.get(f"/streams/{stream}/events", params={"after": 3}).json()["events"]) == 1
        found = web.get("/search", params={"q": "what did happen?", "stream": stream}).json()["events"]
        assert 4 in [one["event"]["id"] for one in found]  # "happen" finds "happened"
        lines = web.get(f"/streams/{stream}/export/jsonl")
        assert [json.loads(line)["text"] for line in lines.text.splitlines()] == [event["text"] for event in events]
        assert "attachment" in lines.headers["content-disposition"]
        assert web.get(f"/streams/{stream}/export/srt").text.startswith("1\n00:00:00,000 --> 00:00:00,500\n")
        refused = web.get(f"/streams/{stream}/export/mp4")
        assert refused.status_code == 400 and "no pictures" in refused.json()["error"]["message"]
        assert web.delete(f"/streams/{stream}").json() == {"ok": True}
        assert web.get(f"/streams/{stream}").status_code == 404
        assert web.get("/search", params={"q": "happened", "stream": stream}).json()["events"] == []


@pytest.mark.slow
def test_stored_pictures_become_a_video_with_the_sentences_burned_in(server: Running, tmp_path: Path) -> None:
    import av

    stream = spoken(server, store_frames=True)
    path = tmp_path / "stream.mp4"
    path.write_bytes(get(f"{server.url}/streams/{stream}/export/mp4", timeout=PATIENCE).content)
    with av.open(str(path)) as container:
        pictures = [one.to_ndarray(format="rgb24") for one in container.decode(video=0)]
    assert len(pictures) >= 3 and pictures[0].shape[0] > 400


def test_events_go_on_as_they_happen_over_server_sent_events(server: Running) -> None:
    with server.socket() as connection:
        stream = opened(connection, threshold=1.0)["stream"]
        connection.send(frame(0.0))
        hear(connection, "event")
        url, headers = f"{server.url}/streams/{stream}/events", {"Accept": "text/event-stream"}
        with httpx.stream("GET", url, headers=headers, timeout=PATIENCE) as answer:
            lines = answer.iter_lines()
            assert next(lines) == "id: 1"
            connection.send(frame(0.5))
            ids = [line for line in iter(lambda: next(lines), "id: 2") if line.startswith("id")]
            assert ids == []
            say(connection, type="close")
            assert "event: closed" in list(lines)


def test_the_openai_form_answers_about_pictures_and_says_what_it_saw(server: Running) -> None:
    def data(name: str, content: bytes) -> dict[str, Any]:
        url = f"data:image/png;base64,{base64.b64encode(content).decode()}"
        return {"type": name, name: {"url": url}}

    pictures = [picture(seed, (32, 32), "PNG") for seed in range(2)]
    content = [{"type": "text", "text": "What happened?"}, *(data("image_url", one) for one in pictures)]
    body = {"model": "tiny", "messages": [{"role": "user", "content": content}], "temperature": 0.2}
    answer = post(f"{server.url}/v1/chat/completions", json=body, timeout=PATIENCE).json()
    session = StreamSession(server.hub.model)
    for number, one in enumerate(pictures):
        session.push(Frame(np.asarray(Image.open(io.BytesIO(one))), number / 2, number))
    assert answer["choices"][0]["message"]["content"] == session.ask("What happened?").text
    assert answer["object"] == "chat.completion" and answer["usage"]["total_tokens"] > 10
    with httpx.stream(
        "POST", f"{server.url}/v1/chat/completions", json={**body, "stream": True}, timeout=PATIENCE
    ) as reply:
        chunks = [line.removeprefix("data: ") for line in reply.iter_lines() if line]
    assert chunks.pop() == "[DONE]"
    words = [json.loads(chunk)["choices"][0]["delta"].get("content", "") for chunk in chunks]
    assert "".join(words) == answer["choices"][0]["message"]["content"] and len(words) > 2
    assert server.hub.live == {}  # nothing stays behind


def test_the_openai_form_narrates_a_whole_video(server: Running, tmp_path: Path) -> None:
    path = tmp_path / "clip.mp4"
    with VideoWriter(path, fps=4) as writer:
        for number in range(8):
            writer.write(np.full((32, 32, 3), 30 * number, np.uint8))
    url = f"data:video/mp4;base64,{base64.b64encode(path.read_bytes()).decode()}"
    message = {"role": "user", "content": [{"type": "video_url", "video_url": {"url": url}}]}
    answer = post(f"{server.url}/v1/chat/completions", json={"model": "tiny", "messages": [message]}, timeout=PATIENCE)
    text, events = answer.json()["choices"][0]["message"]["content"], answer.json()["events"]
    assert text == "".join(f"[{event['time']:.1f}] {event['text']}\n" for event in events)
    tokenizer = server.hub.model.template.tokenizer
    told = sum(len(tokenizer(event["text"], add_special_tokens=False)["input_ids"]) for event in events)
    assert answer.json()["usage"]["completion_tokens"] == told
    message["content"][0]["video_url"]["url"] = "data:video/mp4;base64,AAAA"  # type: ignore[index]
    refused = post(f"{server.url}/v1/chat/completions", json={"model": "tiny", "messages": [message]}, timeout=PATIENCE)
    assert refused.status_code == 400 and "cannot be read" in refused.json()["error"]["message"]
    message["content"][0]["video_url"]["url"] = "http://127.0.0.1/x.mp4"  # type: ignore[index]
    refused = post(f"{server.url}/v1/chat/completions", json={"model": "tiny", "messages": [message]}, timeout=PATIENCE)
    assert refused.status_code == 400 and "fetches nothing" in refused.json()["error"]["message"]


@pytest.mark.slow
def test_a_camera_is_watched_by_the_server_and_its_events_go_to_a_webhook(server: Running) -> None:
    taken: list[tuple[dict[str, Any], str]] = []

    class Hook(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["content-length"]))
            taken.append((json.loads(body), self.headers["x-signature"]))
            assert taken[-1][1] == "sha256=" + hmac.new(b"shh", body, hashlib.sha256).hexdigest()
            self.send_response(500 if len(taken) == 1 else 204)  # the first is tried again
            self.end_headers()

        def log_message(self, *_: Any) -> None:
            return

    hook = HTTPServer(("127.0.0.1", 0), Hook)
    threading.Thread(target=hook.serve_forever, daemon=True).start()
    with RtspCamera(seconds=30) as camera, httpx.Client(base_url=server.url, timeout=PATIENCE) as web:
        wish = {
            "source": camera.address, "threshold": 1.0, "webhook_secret": "shh",
            "webhook": f"http://127.0.0.1:{hook.server_port}/said",
        }  # fmt: skip
        made = web.post("/streams", json=wish)
        assert made.status_code == 201, made.text
        stream = made.json()["id"]
        until(lambda: web.get(f"/streams/{stream}").json()["state"] == "watching")
        until(lambda: len(taken) >= 3)
        assert taken[0][0] == taken[1][0] and taken[2][0]["id"] == 2  # again, and then in order
        assert taken[1][0]["stream"] == stream
        assert web.get(f"/streams/{stream}/picture").content[:2] == b"\xff\xd8"
        answer = web.post(f"/streams/{stream}/ask", json={"text": "What happened?"}).json()
        assert answer["kind"] == "answer"
        assert not web.post(f"/streams/{stream}/end").json()["alive"]
    hook.shutdown()
    hook.server_close()


@pytest.mark.slow
def test_a_recording_at_an_address_is_watched_whole_and_its_end_is_the_streams(tmp_path: Path) -> None:
    rules = Rules(("http://127.0.0.1:*",), private=True)
    model = vm.load("tiny")
    session = vm.StreamSession(model)
    wanted = [event for one in vm.open_video(CLIP, fps=2) for event in session.push(one)]
    with file_server(CLIP.parent) as address, serving(tmp_path, model=model, rules=rules) as server:
        wish = {"source": f"{address}/{CLIP.name}"}
        stream = post(f"{server.url}/streams", json=wish).json()["id"]
        heard = list(vm.connect(server.url, stream=stream, timeout=PATIENCE).events())  # until it has ended
        assert [(one.time, one.text) for one in heard] == [(event.time, event.text) for event in wanted]
        url = f"{server.url}/streams/{stream}/events"
        with httpx.stream("GET", url, headers={"Accept": "text/event-stream"}, timeout=PATIENCE) as answer:
            lines = list(answer.iter_lines())
        said = [json.loads(line.removeprefix("data: ")) for line in lines if line.startswith('data: {"type"')]
        assert [(one["time"], one["text"]) for one in said] == [(event.time, event.text) for event in wanted]
        assert "event: closed" in lines and counted(server).get("videollm_mod_frames_dropped_total", 0) == 0
        assert not server.hub.live


@pytest.mark.slow
def test_a_camera_that_is_lost_is_opened_again_and_time_goes_on(server: Running) -> None:
    with httpx.Client(base_url=server.url, timeout=PATIENCE) as web:
        with RtspCamera(seconds=30) as camera:
            stream = web.post("/streams", json={"source": camera.address, "threshold": 1.0}).json()["id"]
            until(lambda: web.get(f"/streams/{stream}").json()["events"] >= 1)
        lost = until(lambda: (row := web.get(f"/streams/{stream}").json())["state"] == "waiting" and row)
        assert "trying again" in lost["state_text"]
        said = lost["events"]
        with RtspCamera(seconds=30, port=camera.port):
            until(lambda: web.get(f"/streams/{stream}").json()["events"] > said)
            times = [one["event"]["time"] for one in web.get(f"/streams/{stream}/events").json()["events"]]
            assert times == sorted(times) and times[-1] - times[said - 1] >= 0.5
            web.delete(f"/streams/{stream}")


@pytest.mark.slow
def test_a_real_rtsp_server_is_narrated_lost_awaited_ever_longer_and_found_again(tmp_path: Path) -> None:
    if why := gstreamer_camera.missing():
        pytest.skip(why)
    model = vm.load("tiny")
    session = vm.StreamSession(model)
    wanted = [event for one in vm.open_video(CLIP, fps=2, end=24) for event in session.push(one)]
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    rules = Rules((f"rtsp://127.0.0.1:{port}",), private=True)
    with serving(tmp_path, model=model, rules=rules) as server, httpx.Client(base_url=server.url, timeout=30) as web:
        with GStreamerCamera(CLIP, port) as camera:
            stream = web.post("/streams", json={"source": camera.address}).json()["id"]

            def said() -> list[dict[str, Any]]:
                return [one["event"] for one in web.get(f"/streams/{stream}/events").json()["events"]]

            until(lambda: wanted[-1].text in [one["text"] for one in said()])
            times = {one["text"]: one["time"] for one in said()}
            # the stream began when it was asked for, the clip later; of its first pictures, which come all at once, the
            # newest is watched, so that a sentence or two may differ
            shifts = [times[event.text] - event.time for event in wanted if event.text in times]
            assert len(shifts) >= 3 and max(shifts) - min(shifts) <= 0.5 and 0 <= min(shifts) < 30
            assert counted(server)["videollm_mod_source_reconnects_total"] == 0
            camera.kill()
        waits = set()
        while "4" not in waits:
            row = web.get(f"/streams/{stream}").json()
            assert row["alive"] and row["state"] in ("watching", "connecting", "waiting")
            waits |= set(re.findall(r"trying again in (\d+) s", row["state_text"]))
            time.sleep(0.1)
        assert waits == {"1", "2", "4"} and counted(server)["videollm_mod_source_reconnects_total"] == 3
        before = said()
        with GStreamerCamera(CLIP, port):
            until(lambda: len(said()) > len(before))
            assert web.get(f"/streams/{stream}").json()["state"] == "watching"
        after = said()
        assert after[: len(before)] == before and after[len(before)]["time"] > before[-1]["time"] + 3  # time went on


@pytest.mark.parametrize(
    ("source", "words"),
    [
        ("/etc/passwd", "must begin with"),
        ("file:///etc/passwd", "must begin with"),
        ("rtsp://elsewhere.example/x", "not on this server's list"),
        ("concat:rtsp://127.0.0.1:9/x", "must begin with"),
        ("rtsp://127.0.0.1:9\r\nHost: x/", "holds blanks"),
        ("gopher://127.0.0.1/x", "must begin with"),
    ],
)
def test_an_address_that_is_not_allowed_is_not_opened(server: Running, source: str, words: str) -> None:
    answer = post(f"{server.url}/streams", json={"source": source})
    assert answer.status_code == 400 and words in answer.json()["error"]["message"]


def test_a_token_is_needed_where_there_are_tokens_and_clients_see_their_own_streams_only(tmp_path: Path) -> None:
    doors = Doors("0.0.0.0", {TOKEN: "anna", OTHER: "bert"})
    with serving(tmp_path, doors=doors) as running, httpx.Client(base_url=running.url, timeout=PATIENCE) as web:
        assert web.get("/").status_code == web.get("/healthz").status_code == web.get("/readyz").status_code == 200
        for path in ("/info", "/streams", "/metrics", "/search?q=x", "/v1/models"):
            refused = web.get(path)
            assert refused.status_code == 401 and refused.headers["www-authenticate"] == "Bearer"
        assert web.get("/info", headers={"Authorization": "Bearer wrong"}).status_code == 401
        with pytest.raises(InvalidStatus):
            running.socket()
        by_header = {"additional_headers": {"Authorization": f"Bearer {TOKEN}"}}
        by_protocol = {"subprotocols": [SUBPROTOCOL, token_subprotocol(TOKEN)]}
        with running.socket(**by_header) as first:
            stream = opened(first)["stream"]
        with running.socket(**by_protocol) as second:
            assert opened(second, stream=stream)["resumed"] and second.subprotocol == SUBPROTOCOL
        with running.socket(additional_headers={"Authorization": f"Bearer {OTHER}"}) as third:
            say(third, type="open", version=1, stream=stream)
            assert hear(third, "error")["code"] == "unknown_stream"
        anna, bert = ({"Authorization": f"Bearer {token}"} for token in (TOKEN, OTHER))
        assert [one["id"] for one in web.get("/streams", headers=anna).json()] == [stream]
        assert web.get("/streams", headers=bert).json() == []
        assert web.get(f"/streams/{stream}", headers=bert).status_code == 404
        assert web.delete(f"/streams/{stream}", headers=bert).status_code == 404


def test_pages_of_other_sites_and_rebound_names_are_kept_out(server: Running) -> None:
    with httpx.Client(base_url=server.url, timeout=PATIENCE) as web:
        assert web.get("/info", headers={"Origin": "https://evil.example"}).status_code == 403
        assert web.get("/info", headers={"Origin": server.url}).status_code == 200
        for path in ("/info", *FILES):
            assert web.get(path, headers={"Host": "evil.example"}).status_code == 421
        assert web.get("/healthz", headers={"Host": "evil.example"}).status_code == 200
        assert web.post("/streams", json={}, headers={"Sec-Fetch-Site": "cross-site"}).status_code in (403, 422)
        assert web.get("/info", headers={"Origin": "null"}).status_code == 403
    for headers in ({"Origin": "https://evil.example"}, {"Origin": "null"}):
        with pytest.raises(InvalidStatus):
            server.socket(additional_headers=headers)


def test_the_page_asks_no_other_host_and_its_headers_say_so(server: Running) -> None:
    with httpx.Client(base_url=server.url, timeout=PATIENCE) as web:
        for path in FILES:
            answer = web.get(path)
            assert answer.status_code == 200 and "default-src 'self'" in answer.headers["content-security-policy"]
            assert answer.headers["x-content-type-options"] == "nosniff"
            # the namespace of SVG is a name, not an address that is asked for anything
            other = re.findall(r"https?://[^\s\"'`)]+", answer.text.replace("http://www.w3.org/2000/svg", ""))
            assert other == []
        page = web.get("/").text
        assert "<script>" not in page and " onclick=" not in page and " style=" not in page


@pytest.mark.parametrize(
    "path", ["/../pyproject.toml", "/style.css/../app.py", "/%2e%2e/hub.py", "/app.py", "//etc/passwd"]
)
def test_nothing_else_of_the_disk_is_served(server: Running, path: str) -> None:
    answer = get(server.url + path)
    assert answer.status_code == 404 and set(answer.json()) == {"error"}


def test_bodies_are_bounded_and_no_reply_tells_of_the_inside(server: Running) -> None:
    with httpx.Client(base_url=server.url, timeout=PATIENCE) as web:
        assert web.post("/streams", content=b"x" * 100_000).status_code == 413

        def endless() -> Iterator[bytes]:
            for _ in range(200):
                yield b"x" * 1000

        assert web.post("/streams", content=endless()).status_code == 413
        for answer in (
            web.post("/streams", content=b"{"),
            web.get("/streams/x"),
            web.put("/streams"),
            web.get("/nowhere"),
            web.get("/streams?limit=x"),
            web.post("/v1/chat/completions", json={"messages": []}),
        ):
            assert 400 <= answer.status_code < 500
            assert (
                answer.json()["error"]["message"] and "Traceback" not in answer.text and "/videollm" not in answer.text
            )


def test_metrics_count_what_happened(server: Running) -> None:
    before = counted(server)
    spoken(server)
    until(lambda: counted(server)["videollm_mod_events_total"] >= before.get("videollm_mod_events_total", 0) + 4)
    after = counted(server)
    assert after["videollm_mod_frames_total"] >= before.get("videollm_mod_frames_total", 0) + 3
    assert after["videollm_mod_step_seconds_count"] > 0 and after["videollm_mod_lag_seconds_count"] > 0


def counted(server: Running) -> dict[str, float]:
    """Metric -> sum over its labels."""
    sums: dict[str, float] = {}
    for line in get(f"{server.url}/metrics").text.splitlines():
        if not line.startswith("#"):
            name, value = line.rsplit(" ", 1)
            sums[name.split("{")[0]] = sums.get(name.split("{")[0], 0.0) + float(value)
    return sums


def test_streams_of_a_stopped_server_are_reopened_and_the_client_is_told(tmp_path: Path) -> None:
    model = tiny_model(DepthPlan("full"))
    with serving(tmp_path, model=model) as running, running.socket() as connection:
        stream = opened(connection, threshold=1.0)["stream"]
        connection.send(frame(0.5))
        hear(connection, "event")
    with serving(tmp_path, model=model) as again, again.socket() as connection:
        welcome = opened(connection, stream=stream, threshold=1.0)
        assert welcome["reopened"] and not welcome["resumed"] and welcome["time"] == 0.5
        said = hear(connection, "event")
        assert said["id"] == 1  # what was said is still there
        connection.send(frame(1.0))
        assert hear(connection, "event")["id"] == 2
        session = again.hub.live[stream].stream._session
        assert said["text"] in session.template.decode(session.context)  # and the model is told of it


@pytest.mark.slow
def test_a_source_is_watched_again_after_a_restart_until_it_is_ended(tmp_path: Path) -> None:
    rules = Rules(("rtsp://127.0.0.1:*",), private=True)
    with serving(tmp_path, rules=rules) as running, RtspCamera(seconds=30) as camera:
        stream = post(f"{running.url}/streams", json={"source": camera.address}).json()["id"]
    with serving(tmp_path, rules=rules) as again:
        row = get(f"{again.url}/streams/{stream}").json()
        assert row["alive"] and row["source"] == camera.address and row["ended"] is None
        post(f"{again.url}/streams/{stream}/end")
    with serving(tmp_path, rules=rules) as third:
        assert not get(f"{third.url}/streams/{stream}").json()["alive"]


def test_a_recording_that_is_watched_again_goes_on_behind_what_was_said_of_it(tmp_path: Path) -> None:
    path = tmp_path / "clip.mp4"
    with VideoWriter(path, fps=4) as writer:
        for number in range(12):
            writer.write(np.full((32, 32, 3), 20 * number, np.uint8))
    rules = Rules(("http://127.0.0.1:*",), private=True)
    with file_server(tmp_path) as address:
        wish = {"source": f"{address}/clip.mp4", "threshold": 1.0}
        with serving(tmp_path, rules=rules) as running:
            stream = post(f"{running.url}/streams", json=wish).json()["id"]
            until(lambda: running.hub.store.stream(stream, "local")["ended"])  # type: ignore[index]
            first = running.hub.store.events(stream)
            with running.hub.store.engine.begin() as connection:  # as if the server had been killed
                connection.exec_driver_sql("UPDATE streams SET ended = NULL")
        with serving(tmp_path, rules=rules) as again:
            until(lambda: not again.hub.live)
            said = again.hub.store.events(stream)
        times = [one.event.time for one in said]
        assert len(first) == 6 and len(said) == 12 and times == sorted(set(times))


def test_an_address_that_a_web_server_refuses_is_not_asked_again_and_says_why(server: Running, tmp_path: Path) -> None:
    with file_server(tmp_path) as address:
        stream = post(f"{server.url}/streams", json={"source": f"{address}/nothing.mp4"}).json()["id"]
        row = until(lambda: (found := get(f"{server.url}/streams/{stream}").json())["ended"] and found)
    assert row["state"] == "ended" and "404" in row["state_text"] and ".." not in row["state_text"]
    assert counted(server).get("videollm_mod_source_reconnects_total", 0) == 0


def test_a_source_that_cannot_be_reached_is_tried_again_and_says_so_in_one_sentence(server: Running) -> None:
    stream = post(f"{server.url}/streams", json={"source": "rtsp://127.0.0.1:9/door"}).json()["id"]
    row = until(lambda: (found := get(f"{server.url}/streams/{stream}").json())["state"] == "waiting" and found)
    assert row["state_text"].endswith("check the address and the network; trying again in 1 s")
    httpx.delete(f"{server.url}/streams/{stream}", timeout=PATIENCE)


@pytest.mark.parametrize(
    ("method", "path", "wish", "status", "words"),
    [
        ("GET", "/streams/nope", {}, 404, "there is no stream nope."),
        ("GET", f"/streams/{'x' * 22}", {}, 404, f"there is no stream {'x' * 22}."),
        ("GET", "/search?q=", {}, 422, "give words to search for."),
        ("GET", "/search", {}, 422, "give words to search for, as q."),
        ("POST", "/streams", {"content": b'{"source": "x"}'}, 422, "with the header Content-Type: application/json."),
        ("POST", "/streams", {"data": {"source": "x"}}, 422, "with the header Content-Type: application/json."),
        ("POST", "/v1/chat/completions", {"json": {"messages": []}}, 422, "messages is empty; send one"),
        (
            "POST", "/v1/chat/completions", {"json": {"messages": [{"role": "user", "content": "Who is there?"}]}},
            400, "holds a picture or a video; send one to ask about.",
        ),
    ],
)  # fmt: skip
def test_what_is_often_asked_wrongly_is_told_in_a_sentence(
    server: Running, method: str, path: str, wish: dict[str, Any], status: int, words: str
) -> None:
    answer = httpx.request(method, server.url + path, timeout=PATIENCE, **wish)
    assert answer.status_code == status and words in answer.json()["error"]["message"]
    assert server.hub.live == {}


def test_questions_in_the_openai_form_are_bounded(server: Running) -> None:
    long = {"messages": [{"role": "user", "content": "x" * (Bounds().question_characters + 1)}]}
    refused = post(f"{server.url}/v1/chat/completions", json=long)
    assert refused.status_code == 400 and "characters" in refused.json()["error"]["message"]
    assert server.hub.live == {}


def test_a_full_server_says_over_http_when_to_come_back(tmp_path: Path) -> None:
    rules = Rules(("rtsp://127.0.0.1:*",), private=True)
    with serving(tmp_path, rules=rules, max_streams=1) as running, running.socket() as inside:
        opened(inside)
        url = f"data:image/jpeg;base64,{base64.b64encode(picture()).decode()}"
        content = [{"type": "image_url", "image_url": {"url": url}}]
        for path, body in (
            ("/streams", {"source": "rtsp://127.0.0.1:9/door"}),
            ("/v1/chat/completions", {"messages": [{"role": "user", "content": content}]}),
        ):
            refused = post(f"{running.url}{path}", json=body)
            assert refused.status_code == 503 and "full" in refused.json()["error"]["message"]
            assert 1 <= float(refused.headers["retry-after"]) <= 60


def test_one_client_may_have_so_many_streams_and_takes_none_from_another(tmp_path: Path) -> None:
    doors = Doors("0.0.0.0", {TOKEN: "anna", OTHER: "bert"})
    anna, bert = ({"additional_headers": {"Authorization": f"Bearer {token}"}} for token in (TOKEN, OTHER))
    with serving(tmp_path, doors=doors, bounds=Bounds(streams_per_client=1)) as running:
        with running.socket(**anna) as first, running.socket(**anna) as second, running.socket(**bert) as third:
            opened(first)
            say(second, type="open", version=1)
            error = hear(second, "error")
            assert error["code"] == "full" and "as many as one client may" in error["message"]
            opened(third)


def test_pictures_are_stored_only_where_client_and_server_want_it(server: Running, tmp_path: Path) -> None:
    kept, plain = spoken(server, store_frames=True), spoken(server)
    assert len(server.hub.store.frame_times(kept)) == 3 and server.hub.store.frame_times(plain) == []
    with serving(tmp_path) as strict, strict.socket() as connection:
        say(connection, type="open", version=1, store_frames=True)
        assert "stores no pictures" in hear(connection, "error")["message"]


def test_the_log_is_json_lines_that_hold_no_secret(tmp_path: Path) -> None:
    stream = io.StringIO()
    handler, logger = logging.StreamHandler(stream), logging.getLogger("videollm_mod.serve")
    handler.setFormatter(JsonLines())
    level = logger.level
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    rules = Rules(("rtsp://127.0.0.1:*",), private=True)
    try:
        with serving(tmp_path, doors=Doors("0.0.0.0", {TOKEN: "anna"}), rules=rules) as running:
            web = httpx.Client(base_url=running.url, headers={"Authorization": f"Bearer {TOKEN}"}, timeout=PATIENCE)
            wish = {"source": "rtsp://me:hush-hush@127.0.0.1:9/door", "webhook_secret": "whisper"}
            made = web.post("/streams", json=wish).json()
            web.get("/search", params={"q": "a private question"})
            web.delete(f"/streams/{made['id']}")
            assert "hush-hush" not in json.dumps(made) and "whisper" not in json.dumps(made)
    finally:
        logger.removeHandler(handler)
        logger.setLevel(level)
    lines = [json.loads(line) for line in stream.getvalue().splitlines()]
    assert {"time", "level", "what"} <= set.intersection(*(set(line) for line in lines))
    requests = [(line["method"], line["path"], line["status"]) for line in lines if line["what"] == "request"]
    assert ("POST", "/streams", 201) in requests and ("GET", "/search", 200) in requests
    assert any(line.get("stream") == made["id"] and line["what"] == "stream closed" for line in lines)
    for secret in (TOKEN, "hush-hush", "whisper", "private question"):
        assert secret not in stream.getvalue()


def test_the_log_names_the_stream_whose_source_is_not_watched_again(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    store = Store(str(tmp_path / "events.db"))
    store.begin("s" * 22, "local", source="rtsp://gone.example/x")
    store.remember("s" * 22, json.dumps({"address": "rtsp://gone.example/x"}))
    store.close()
    with serving(tmp_path):
        pass
    (record,) = [one for one in caplog.records if one.getMessage() == "a source is not watched again"]
    line = json.loads(JsonLines().format(record))
    assert line["stream"] == "s" * 22 and "rtsp://gone.example is not on this server's list" in line["reason"]


def test_metrics_tell_of_streams_frames_lag_steps_drops_bytes_and_tokens(server: Running) -> None:
    spoken(server)
    text = get(f"{server.url}/metrics").text
    for name, kind in (
        ("streams", "gauge"), ("fps", "gauge"), ("lag_seconds", "histogram"), ("step_seconds", "histogram"),
        ("frames_dropped_total", "counter"), ("kv_bytes", "gauge"), ("kv_bytes_dense", "gauge"),
        ("tokens_total", "counter"), ("events_total", "counter"), ("refused_total", "counter"),
        ("source_reconnects_total", "counter"),
    ):  # fmt: skip
        assert f"# TYPE videollm_mod_{name} {kind}" in text


@pytest.mark.parametrize("hides", ["a redirect", "a playlist"])
def test_an_allowed_address_leads_nowhere_else(hides: str, tmp_path: Path) -> None:
    """Neither a redirect nor a playlist makes the server open an address that nobody allowed."""
    asked: list[str] = []

    class Inner(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.append(self.path)
            self.send_error(404)

        def log_message(self, *_: Any) -> None:
            return

    class Outer(Inner):
        def do_GET(self) -> None:
            aim = f"http://127.0.0.1:{inner.server_port}/inside.ts"
            if hides == "a redirect":
                self.send_response(302)
                self.send_header("Location", aim)
                self.end_headers()
                return
            body = f"#EXTM3U\n#EXT-X-TARGETDURATION:5\n#EXTINF:5,\n{aim}\n#EXT-X-ENDLIST\n".encode()
            self.send_response(200)
            self.send_header("Content-Type", "application/vnd.apple.mpegurl")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

    inner, outer = (ThreadingHTTPServer(("127.0.0.1", 0), kind) for kind in (Inner, Outer))
    for one in (inner, outer):
        threading.Thread(target=one.serve_forever, daemon=True).start()
    rules = Rules((f"http://127.0.0.1:{outer.server_port}",), private=True)
    try:
        with serving(tmp_path, rules=rules) as running:
            wish = {"source": f"http://127.0.0.1:{outer.server_port}/list.m3u8"}
            stream = post(f"{running.url}/streams", json=wish).json()["id"]
            until(lambda: get(f"{running.url}/streams/{stream}").json()["state"] == "waiting")
            assert asked == []
    finally:
        for one in (inner, outer):
            one.shutdown()
            one.server_close()
