"""The server as a process of its own: killed, flooded, filled; and in the hands of other people's tools."""

from __future__ import annotations

import base64
import contextlib
import io
import json
import os
import random
import re
import signal
import statistics
import struct
import subprocess
import sys
import threading
import time
import zlib
from pathlib import Path
from typing import Any

import httpx
import pytest
from postgres import Postgres
from serve_cases import (
    PATIENCE,
    STARTING,
    Process,
    frame,
    get,
    hear,
    opened,
    picture,
    post,
    running,
    say,
    serving,
    until,
)
from websockets.exceptions import ConnectionClosed, InvalidMessage, InvalidStatus

import videollm_mod as vm
from videollm_mod.serve import protocol
from videollm_mod.serve.limits import Bounds
from videollm_mod.serve.store import Store

pytestmark = pytest.mark.slow

CLIP = Path(vm.__file__).parent / "assets" / "demo.mp4"


@pytest.fixture(params=["sqlite", "postgresql"])
def database(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """What `--store` is given: an SQLite file, and an empty database of PostgreSQL."""
    sqlite = request.param == "sqlite"
    return str(tmp_path / "events.db") if sqlite else str(request.getfixturevalue("postgres").database())


def test_a_killed_server_loses_no_event_that_a_client_was_shown(database: str, tmp_path: Path) -> None:
    seen: list[int] = []
    with running(tmp_path, store=database) as server, server.socket() as connection:
        stream = opened(connection, threshold=1.0, policy="all")["stream"]

        def kill() -> None:
            until(lambda: len(seen) >= 8, STARTING)
            server.process.send_signal(signal.SIGKILL)

        killer = threading.Thread(target=kill)
        killer.start()
        with pytest.raises(ConnectionClosed):
            for number in range(10_000):
                connection.send(frame(number / 2, seed=number % 7))
                seen.append(hear(connection, "event", STARTING)["id"])
        killer.join()
    store = Store(database)
    stored = [one.number for one in store.events(stream)]
    assert stored[: len(seen)] == seen == list(range(1, len(seen) + 1))
    store.close()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_the_command_ends_on_ctrl_c_and_sigterm_with_one_json_object(number: signal.Signals, tmp_path: Path) -> None:
    with running(tmp_path) as server:
        with vm.connect(server.url, threshold=1.0, timeout=PATIENCE) as stream:
            for one in vm.open_video(CLIP, fps=2, end=1.0):
                stream.push(one)
        server.process.send_signal(number)
        assert server.process.stdout is not None
        last = server.process.stdout.read().strip().splitlines()[-1]
        assert server.process.wait(PATIENCE) == 0 and json.loads(last)["events"] == 2


def test_the_served_model_says_of_the_clip_what_the_session_says(tmp_path: Path) -> None:
    session = vm.StreamSession(vm.load("tiny"))
    with running(tmp_path) as server, vm.connect(server.url, quality=100, timeout=PATIENCE) as stream:
        for one in vm.open_video(CLIP, fps=2, end=20.0):
            wanted = session.push(one)
            said = stream.push(one)
            assert [(e.time, e.text) for e in said] == [(e.time, e.text) for e in wanted]


# -- hostile messages --------------------------------------------------------------------------------------------------


def hostile(source: random.Random, clock: list[float]) -> str | bytes:
    """One message that nobody should send."""

    def png(width: int, height: int) -> bytes:
        chunk = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
        return b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + chunk + struct.pack(">I", zlib.crc32(chunk)) + b"\0" * 40

    whole = picture(source.randrange(5))
    kind = source.randrange(16)
    clock[0] += 0.5
    when = clock[0]
    if kind == 0:
        return protocol.pack_frame(when, whole[: source.randrange(len(whole))])
    if kind == 1:
        return protocol.pack_frame(when, png(10_000, 10_000))
    if kind == 2:
        return protocol.pack_frame(source.choice([float("nan"), float("inf"), -1.0, -0.0, 1e300]), whole)
    if kind == 3:
        return protocol.pack_frame(when - 5, whole)  # backward
    if kind == 4:
        return source.randbytes(source.randrange(200))
    if kind == 5:
        return '{"type": "ask", "text": "' + "x" * source.choice([0, 1000, 200_000]) + '"}'
    if kind == 6:
        return "[" * source.randrange(1, 50_000)
    if kind == 7:
        return '{"type": "open", "version": 1}'  # again
    if kind == 8:
        return json.dumps({"type": "ask", "text": "x", "time": source.choice([-1, 1e308, "soon", None, [], {}])})
    if kind == 9:
        return '{"type": "ask", "text": "' + "\\ud800" * 3 + '"}'
    if kind == 10:
        return json.dumps({"type": "show", "kept": source.choice(["yes", 2, None, True])})
    if kind == 11:
        damaged = bytearray(whole)
        for _ in range(20):
            damaged[source.randrange(len(damaged))] = source.randrange(256)
        return protocol.pack_frame(when, bytes(damaged))
    if kind == 12:
        return '{"type": 1e999999, "n": ' + "9" * 5000 + "}"
    if kind == 13:
        return source.choice(["", " ", "null", "true", "0", '"open"', "{}", "\x00"])
    if kind == 14:
        return protocol.pack_frame(when, b"<svg xmlns='http://www.w3.org/2000/svg'/>" * 3)
    return protocol.MAGIC + source.randbytes(source.randrange(12))


def test_ten_thousand_hostile_messages_leave_the_server_and_its_other_streams_as_they_were(tmp_path: Path) -> None:
    count = int(os.environ.get("HOSTILE_MESSAGES", "10000"))
    source, sent, refused = random.Random(0), 0, 0
    with running(tmp_path, "--messages-per-second", "100000", "--streams-per-client", "32", "--linger", "0") as server:
        with server.socket(max_size=2**22) as calm:
            opened(calm, threshold=0.0)
            calm_frames, base, before = 0, 0, 0
            while sent < count:
                clock = [0.0]
                try:
                    with server.socket(max_size=2**22, close_timeout=1) as connection:
                        if source.random() < 0.9:
                            opened(connection, threshold=source.choice([0.0, 1.0]))
                        for _ in range(60):
                            connection.send(hostile(source, clock))
                            sent += 1
                            with contextlib.suppress(TimeoutError):
                                while "error" not in json.loads(connection.recv(timeout=0.0005))["type"]:
                                    pass
                                refused += 1
                except (ConnectionClosed, InvalidMessage, InvalidStatus, OSError, json.JSONDecodeError):
                    refused += 1
                if 20 * sent // count >= calm_frames:
                    calm.send(frame(calm_frames / 2))
                    assert hear(calm, "decision")["time"] == calm_frames / 2
                    calm_frames += 1
                    if not base and sent >= count // 2:  # what libraries take at first is no leak: docs/serve.md
                        base, before = at_rest(server)
            rss, blocks = at_rest(server)
            assert server.process.poll() is None and get(f"{server.url}/readyz").status_code == 200
            assert refused > sent / 30 and calm_frames >= 3
            print(f"memory {base / 2**20:.0f} MiB after half of the messages, {rss / 2**20:.0f} MiB at the end")
            print(f"blocks of Python's memory {before}, {blocks}")
            assert blocks < before + 2000, f"Python's objects grew from {before} blocks to {blocks}"
            assert rss < base + 64 * 2**20, f"memory grew from {base} to {rss}"


def at_rest(server: Process) -> tuple[int, int]:
    """The server's resident bytes and Python's blocks, once the streams that were broken off are gone."""
    until(lambda: get(f"{server.url}/info").json()["streams"] == 1, 30)
    return server.rss(), server.blocks()


# -- load --------------------------------------------------------------------------------------------------------------


def test_streams_up_to_the_limit_are_served_and_twice_as_many_are_refused(tmp_path: Path) -> None:
    """Prints step times and lags; `runs/serve_load.sh` on a quiet machine is where to read them."""
    limit, seconds, fps = int(os.environ.get("LOAD_STREAMS", "4")), float(os.environ.get("LOAD_SECONDS", "5")), 2.0
    lags: list[float] = []
    refused: list[str] = []
    failed: list[BaseException] = []
    lock = threading.Lock()
    gate, full = threading.Barrier(limit + 1), threading.Event()

    def admitted(server: Process, number: int) -> None:
        try:
            with server.socket(max_size=2**22) as connection:
                opened(connection)
                gate.wait(STARTING)
                full.wait(STARTING)
                began = time.monotonic()
                for tick in range(int(seconds * fps)):
                    time.sleep(max(0.0, began + tick / fps - time.monotonic()))
                    connection.send(frame(tick / fps, seed=number))
                    lag = hear(connection, "decision")["lag"]
                    with lock:
                        lags.append(lag)
                say(connection, type="close")
        except BaseException as error:
            failed.append(error)

    flags = ("--max-streams", str(limit), "--streams-per-client", str(2 * limit))
    with running(tmp_path, *flags) as server:
        threads = [threading.Thread(target=admitted, args=(server, number)) for number in range(limit)]
        for thread in threads:
            thread.start()
        gate.wait(STARTING)
        for _ in range(limit):  # as many again: one too many each
            with server.socket() as connection:
                say(connection, type="open", version=1)
                error = hear(connection, "error")
                assert error["code"] == "full" and error["retry_after"] >= 1
                refused.append(error["code"])
        full.set()
        for thread in threads:
            thread.join(300)
        assert not failed and len(refused) == limit and len(lags) == limit * int(seconds * fps)
        metrics = get(f"{server.url}/metrics").text
    buckets = re.findall(r'step_seconds_bucket\{le="([^"]+)"\} (\S+)', metrics)
    steps = float(buckets[-1][1])
    p99 = next(edge for edge, below in buckets if float(below) >= 0.99 * steps)
    report = {
        "streams": limit, "frames": len(lags), "lag_median": round(statistics.median(lags), 4),
        "lag_p99": round(sorted(lags)[int(0.99 * (len(lags) - 1))], 4), "step_p99_at_most": p99,
        "refused": len(refused),
    }  # fmt: skip
    print(json.dumps(report))
    if path := os.environ.get("LOAD_REPORT"):
        Path(path).write_text(json.dumps(report) + "\n")
    assert steps > 0


# -- other people's tools ----------------------------------------------------------------------------------------------


def test_the_real_openai_client_gets_answers_whole_and_in_pieces(tmp_path: Path) -> None:
    openai = pytest.importorskip("openai", reason="the openai client is not installed: pip install -e '.[slow]'")
    with serving(tmp_path, model=vm.load("tiny")) as server:
        client = openai.OpenAI(base_url=f"{server.url}/v1", api_key="not needed", max_retries=0)
        assert client.models.list().data[0].id == "tiny"
        url = f"data:image/jpeg;base64,{base64.b64encode(picture()).decode()}"
        content = [{"type": "image_url", "image_url": {"url": url}}, {"type": "text", "text": "What happened?"}]
        messages: Any = [{"role": "user", "content": content}]
        whole = client.chat.completions.create(model="tiny", messages=messages)
        pieces = client.chat.completions.create(
            model="tiny", messages=messages, stream=True, stream_options={"include_usage": True}
        )
        words, usage = [], None
        for chunk in pieces:
            usage = chunk.usage or usage
            words += [choice.delta.content or "" for choice in chunk.choices]
        assert "".join(words) == whole.choices[0].message.content and usage is not None
        film = f"data:video/mp4;base64,{base64.b64encode(CLIP.read_bytes()).decode()}"
        watch: Any = [{"role": "user", "content": [{"type": "video_url", "video_url": {"url": film}}]}]
        told = client.chat.completions.create(model="tiny", messages=watch, stream=True)
        narration = "".join(choice.delta.content or "" for chunk in told for choice in chunk.choices)
        session = vm.StreamSession(server.hub.model)
        said = [event for one in vm.open_video(CLIP, fps=2) for event in session.push(one)]
        assert narration == "".join(f"[{event.time:.1f}] {event.text}\n" for event in said) and len(said) >= 8
        with pytest.raises(openai.BadRequestError, match="fetches nothing"):
            content[0] = {"type": "image_url", "image_url": {"url": "https://example.com/x.png"}}
            client.chat.completions.create(model="tiny", messages=messages)


def test_video_comes_in_over_webrtc_and_words_go_out_over_its_channel(tmp_path: Path) -> None:
    aiortc = pytest.importorskip("aiortc", reason="aiortc is not installed: pip install -e '.[webrtc]'")
    import asyncio
    from fractions import Fraction

    import av
    import numpy as np

    class Camera(aiortc.MediaStreamTrack):  # type: ignore[misc,name-defined]
        kind = "video"

        def __init__(self) -> None:
            super().__init__()
            self.number = 0

        async def recv(self) -> Any:
            await asyncio.sleep(0.1)
            self.number += 1
            one = av.VideoFrame.from_ndarray(np.full((64, 64, 3), (40 * self.number) % 255, np.uint8), "rgb24")
            one.pts, one.time_base = 9000 * self.number, Fraction(1, 90000)
            return one

    async def call(url: str) -> list[dict[str, Any]]:
        heard: list[dict[str, Any]] = []
        peer = aiortc.RTCPeerConnection(aiortc.RTCConfiguration(iceServers=[]))
        channel = peer.createDataChannel("live")
        channel.on("message", lambda text: heard.append(json.loads(text)))
        peer.addTrack(Camera())
        await peer.setLocalDescription(await peer.createOffer())
        wish = {"sdp": peer.localDescription.sdp, "open": {"type": "open", "threshold": 1.0}}
        async with httpx.AsyncClient(timeout=60) as web:
            answer = (await web.post(f"{url}/webrtc", json=wish)).json()
        await peer.setRemoteDescription(aiortc.RTCSessionDescription(answer["sdp"], "answer"))
        asked, until_when = False, time.monotonic() + 4 * PATIENCE
        while time.monotonic() < until_when and not any(one.get("kind") == "answer" for one in heard):
            await asyncio.sleep(0.05)
            if not asked and any(one["type"] == "event" for one in heard):
                channel.send(json.dumps({"type": "ask", "text": "What happened?"}))
                asked = True
        channel.send(json.dumps({"type": "close"}))
        while time.monotonic() < until_when and not any(one["type"] == "closed" for one in heard):
            await asyncio.sleep(0.05)
        await peer.close()
        return heard

    with serving(tmp_path) as server:
        heard = asyncio.run(call(server.url))
        kinds = {one["type"] for one in heard}
        assert {"decision", "delta", "event", "closed"} <= kinds
        assert [one["id"] for one in heard if one["type"] == "event"][:2] == [1, 2]
        bad = post(f"{server.url}/webrtc", json={"sdp": "nonsense"}, timeout=PATIENCE)
        assert bad.status_code == 400 and "cannot be answered" in bad.json()["error"]["message"]
        until(lambda: not server.hub.live)


def test_a_database_that_crashes_under_a_live_stream_costs_no_sentence(postgres: Postgres, tmp_path: Path) -> None:
    with serving(tmp_path, store=postgres.database()) as server, server.socket() as connection:
        stream = opened(connection, threshold=1.0, policy="all")["stream"]
        for number in range(6):
            if number == 3:
                postgres.restart()
            connection.send(frame(number / 2))
            assert hear(connection, "event")["id"] == number + 1
        assert [one.number for one in server.hub.store.events(stream)] == [1, 2, 3, 4, 5, 6]
        assert get(f"{server.url}/readyz").status_code == 200


def test_the_openapi_description_holds_under_schemathesis(database: str, tmp_path: Path) -> None:
    pytest.importorskip("schemathesis", reason="schemathesis is not installed: pip install -e '.[slow]'")
    program = Path(sys.executable).with_name("schemathesis")
    with serving(tmp_path, store=database, bounds=Bounds(streams_per_client=100)) as server:
        words = [str(program), "run", f"{server.url}/openapi.json", "--max-examples", "15", "--seed", "1"]
        checks = "not_a_server_error,status_code_conformance,content_type_conformance,response_schema_conformance"
        done = subprocess.run([*words, "--checks", checks], capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stdout[-3000:]


def test_pictures_of_all_formats_are_the_same_to_the_server(tmp_path: Path) -> None:
    from PIL import Image

    with serving(tmp_path) as server, server.socket() as connection:
        opened(connection, threshold=0.0, policy="all")
        for number, kind in enumerate(("JPEG", "PNG", "WEBP")):
            buffer = io.BytesIO()
            Image.new("RGB", (64, 48), (200, 30, 30)).save(buffer, kind)
            connection.send(protocol.pack_frame(number / 2, buffer.getvalue()))
            assert hear(connection, "decision")["time"] == number / 2
