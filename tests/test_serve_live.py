"""The live WebSocket: pictures in, narration and answers out; lost connections, limits, many streams at once."""

from __future__ import annotations

import json
import socket
import time
from collections.abc import Iterator

import jsonschema
import numpy as np
import pytest
from serve_cases import PATIENCE, Running, frame, get, hear, opened, picture, random_model, say, serving, until
from stream_cases import frames, tiny_model
from websockets.exceptions import ConnectionClosed

import videollm_mod as vm
from videollm_mod.depth import DepthPlan
from videollm_mod.serve import protocol
from videollm_mod.serve.client import ServerFull, ServerUnreachable
from videollm_mod.serve.limits import Bounds
from videollm_mod.stream.engine import Engine, EngineFull
from videollm_mod.stream.session import StreamSession
from videollm_mod.types import Frame, InputError


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    with serving(tmp_path_factory.mktemp("serve"), linger=30.0) as running:
        yield running


def test_a_frame_gives_a_decision_and_a_sentence_that_is_stored(server: Running) -> None:
    with server.socket() as connection:
        welcome = opened(connection, threshold=1.0, kept=True)
        assert welcome["grid"] == [2, 2] and welcome["routed"] == [1, 3] and not welcome["resumed"]
        connection.send(frame(0.5))
        decision = hear(connection, "decision")
        assert decision["speaks"] and 0 <= decision["silence"] <= 1 and decision["time"] == 0.5
        kept = protocol.unpack_kept(hear(connection, "kept")["layers"], 5)
        assert sorted(kept) == [1, 3] and all(mask.sum() == 2 for mask in kept.values())
        event = hear(connection, "event")
        assert (event["id"], event["kind"], event["time"]) == (1, "narration", 0.5)
        stored = server.hub.store.events(welcome["stream"])
        assert [one.event.text for one in stored] == [event["text"]]
        say(connection, type="close")
        assert "ended" in hear(connection, "closed")["reason"]


def test_what_the_server_sends_is_as_its_schema_says(server: Running) -> None:
    schema = protocol.message_schema()
    check = jsonschema.Draft202012Validator({**schema["server"], "$defs": schema["$defs"]})
    kinds = set()
    with server.socket() as connection:
        say(connection, type="open", version=1, threshold=1.0, kept=True)
        connection.send(frame(0.0))
        say(connection, type="ask", text="What happened?")
        say(connection, type="nonsense")
        while not {"welcome", "decision", "kept", "event", "error", "meters"} <= kinds:
            message = json.loads(connection.recv(timeout=PATIENCE))
            kinds.add(message["type"])
            check.validate(message)


def test_the_client_says_what_a_session_says_of_the_same_pictures(server: Running) -> None:
    class Lossless(vm.connect.__globals__["LiveStream"]):  # type: ignore[misc,name-defined]
        def _encode(self, image: np.ndarray) -> bytes:  # PNG, so that both see the same pixels
            return png(image)

    session = StreamSession(server.hub.model, threshold=0.9)
    with Lossless(server.url, threshold=0.9, record_kept=True, timeout=PATIENCE) as stream:
        for one in frames(4):
            wanted = session.push(one)
            said = stream.push(one)
            assert [(e.text, e.time) for e in said] == [(e.text, e.time) for e in wanted]
        assert stream.ask("What happened?").text == session.ask("What happened?").text


def png(image: np.ndarray) -> bytes:
    import io

    from PIL import Image

    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "PNG")
    return buffer.getvalue()


def test_a_lost_connection_goes_on_in_the_same_stream_and_gets_what_it_missed(server: Running) -> None:
    with server.socket() as first:
        stream = opened(first, threshold=1.0)["stream"]
        first.send(frame(0.0))
        assert hear(first, "event")["id"] == 1
        first.send(frame(0.5))
    until(lambda: len(server.hub.store.events(stream)) == 2)
    with server.socket() as second:
        welcome = opened(second, stream=stream, after=1)
        assert welcome["resumed"] and welcome["stream"] == stream and welcome["time"] == 0.5
        assert hear(second, "event")["id"] == 2
        second.send(frame(1.0))
        event = hear(second, "event")
        assert (event["id"], event["frame"]) == (3, 2)  # the third frame of one and the same session
        say(second, type="close")


def test_the_client_comes_back_by_itself(server: Running) -> None:
    with vm.connect(server.url, threshold=1.0, timeout=PATIENCE) as stream:
        first = stream.push(Frame(np.zeros((32, 32, 3), np.uint8), 0.0, 0))
        name = stream.id
        stream._socket.socket.shutdown(2)  # as if a cable were pulled
        said = stream.push(Frame(np.full((32, 32, 3), 200, np.uint8), 0.5, 1))
        assert stream.id == name and stream.welcome.resumed
        assert [event.time for event in first + said] == [0.0, 0.5]
        assert stream.ask("What happened?").kind == "answer"


def test_a_newer_connection_takes_the_stream_over(server: Running) -> None:
    with server.socket() as first, server.socket() as second:
        stream = opened(first)["stream"]
        opened(second, stream=stream)
        assert hear(first, "error")["code"] == "taken"
        with pytest.raises(ConnectionClosed):
            hear(first, "never")
        second.send(frame(0.0))
        hear(second, "decision")
        say(second, type="close")


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"", "no frame"),
        (b"VMF1", "no frame"),
        (b"XXXX" + b"\0" * 40, "no frame"),
        (protocol.pack_frame(float("nan"), b"x"), "no number of seconds"),
        (protocol.pack_frame(float("inf"), b"x"), "no number of seconds"),
        (protocol.pack_frame(-1.0, b"x"), "no number of seconds"),
        (protocol.pack_frame(5.0, b"GIF89a" + b"\0" * 30), "neither JPEG, PNG nor WebP"),
        (protocol.pack_frame(5.0, picture(size=(600, 300))), "pixels; send at most"),
        (protocol.pack_frame(0.0, picture()), "does not come after"),
        (protocol.pack_frame(1e6, picture()), "may last"),
        ("{", "is no JSON"),
        ('{"type": "open"}', "open already"),
        ('{"type": "ask", "text": " "}', "empty"),
        ('{"type": "ask", "text": "' + "x" * 600 + '"}', "600 characters"),
        ('{"type": "ask", "text": "x", "time": NaN}', "finite number"),
        ('{"type": "ask", "text": "x", "secret": 1}', "entry that is not known"),
        ('{"type": "no_such"}', "no type that is known"),
        ("[" * 5000, "no JSON"),
        ('{"type": "ask", "text": "' + "x" * 20000 + '"}', "characters at most"),
    ],
)
def test_what_cannot_be_is_refused_in_a_sentence(limited: Running, data: bytes | str, words: str) -> None:
    with limited.socket() as connection:
        opened(connection, threshold=0.0)
        connection.send(frame(0.0))
        hear(connection, "decision")
        connection.send(data)
        assert words in hear(connection, "error")["message"]
        if "may last" not in words:  # that one has ended the stream
            connection.send(frame(1.0))
            assert hear(connection, "decision")["time"] == 1.0  # and it goes on
            say(connection, type="close")


@pytest.fixture(scope="module")
def limited(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    bounds = Bounds(frame_pixels=100_000, streams_per_client=40, frame_bytes=2**20)
    with serving(tmp_path_factory.mktemp("limited"), linger=30.0, bounds=bounds) as running:
        yield running


def test_a_cut_off_picture_costs_itself_only(server: Running) -> None:
    with server.socket() as connection:
        opened(connection, threshold=0.0)
        whole = picture(size=(200, 200))
        connection.send(protocol.pack_frame(0.0, whole[: len(whole) // 2]))
        error = hear(connection, "error")
        assert error["code"] == "bad_frame" and "cut off" in error["message"]
        connection.send(frame(0.5))
        assert hear(connection, "decision")["time"] == 0.5
        say(connection, type="close")


def test_the_first_message_must_open(server: Running) -> None:
    with server.socket() as connection:
        say(connection, type="ask", text="Anybody there?")
        error = hear(connection, "error")
        assert error["fatal"] and "open" in error["message"]
        with pytest.raises(ConnectionClosed):
            connection.recv(timeout=5)


def test_a_question_before_any_picture_is_refused_and_the_connection_goes_on(server: Running) -> None:
    with server.socket() as connection:
        opened(connection, threshold=0.0)
        say(connection, type="ask", text="What happened?")
        error = hear(connection, "error")
        assert (error["code"], error["fatal"]) == ("bad_message", False)
        assert error["message"] == "nothing has been seen yet; send a frame first."
        connection.send(frame(0.0))
        say(connection, type="ask", text="What happened?")
        assert hear(connection, "event")["kind"] == "answer"
        say(connection, type="close")


def test_a_stream_that_is_closed_right_after_a_question_answers_it_first(server: Running) -> None:
    with server.socket() as connection:
        opened(connection, threshold=0.0)
        connection.send(frame(0.0))
        say(connection, type="ask", text="What happened?")
        say(connection, type="close")
        kinds = []
        while "closed" not in kinds:
            kinds.append(json.loads(connection.recv(timeout=PATIENCE))["type"])
        assert kinds.count("event") == 1


def test_the_twentieth_refused_message_ends_the_connection_with_a_reason(server: Running) -> None:
    with server.socket() as connection:
        stream = opened(connection)["stream"]
        for _ in range(20):
            say(connection, type="nonsense")
        with pytest.raises(ConnectionClosed) as closed:
            while not (error := hear(connection, "error"))["fatal"]:
                pass
            connection.recv(timeout=PATIENCE)
        assert error["message"].startswith("20 messages were refused")
        assert closed.value.rcvd is not None and closed.value.rcvd.code == 1008
    with server.socket() as connection:
        assert opened(connection, stream=stream)["resumed"]  # the stream waited
        say(connection, type="close")


def test_too_many_messages_are_refused_and_then_the_connection_ends(tmp_path_factory: pytest.TempPathFactory) -> None:
    with serving(tmp_path_factory.mktemp("rate"), bounds=Bounds(messages_per_second=5)) as running:
        with running.socket() as connection:
            opened(connection, threshold=0.0)
            with pytest.raises(ConnectionClosed):
                for number in range(200):
                    connection.send(frame(number / 10))
                    time.sleep(0.001)
                while True:
                    connection.recv(timeout=PATIENCE)
        text = get(f"{running.url}/metrics").text
        assert 'videollm_mod_frames_dropped_total{reason="too_fast"}' in text


def test_a_full_server_refuses_with_a_time_to_come_back_and_takes_nothing_from_those_inside(
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    with serving(tmp_path_factory.mktemp("full"), max_streams=1) as running, running.socket() as inside:
        opened(inside, threshold=0.0)
        with running.socket() as outside:
            say(outside, type="open", version=1)
            error = hear(outside, "error")
            assert error["code"] == "full" and error["retry_after"] >= 1 and error["fatal"]
        with pytest.raises(ServerFull) as refused:
            vm.connect(running.url, timeout=PATIENCE)
        assert refused.value.retry_after is not None
        inside.send(frame(0.0))
        assert hear(inside, "decision")["time"] == 0.0
        say(inside, type="close")
        hear(inside, "closed")
        vm.connect(running.url, timeout=PATIENCE).close()  # its place is free again


def test_a_stream_that_does_not_fit_into_the_memory_is_refused(tmp_path_factory: pytest.TempPathFactory) -> None:
    with serving(tmp_path_factory.mktemp("kv"), max_bytes=1000) as running:
        with pytest.raises(ServerFull):
            vm.connect(running.url, timeout=PATIENCE)
        with running.socket() as connection:
            say(connection, type="open", version=1)
            assert hear(connection, "error")["code"] == "full"


def test_who_was_let_in_by_its_bytes_goes_on_when_another_does_not_fit(
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    def fits(most: int) -> bool:
        try:
            Engine(random_model(), max_bytes=most).open(window=4.0)
        except EngineFull:
            return False
        return True

    least = next(most for most in range(10_000, 10_000_000, 10_000) if fits(most))
    with serving(tmp_path_factory.mktemp("kv"), max_bytes=least) as running, running.socket() as inside:
        opened(inside, threshold=0.0, window=4.0)
        with running.socket() as outside:
            say(outside, type="open", version=1, window=4.0)
            error = hear(outside, "error")
            assert error["code"] == "full" and "memory" in error["message"] and error["retry_after"] >= 1
        for number in range(30):  # far beyond its window
            inside.send(frame(number / 2))
            assert hear(inside, "decision")["time"] == number / 2


def test_a_stream_that_nobody_comes_back_to_is_ended(tmp_path_factory: pytest.TempPathFactory) -> None:
    with serving(tmp_path_factory.mktemp("linger"), linger=0.3) as running:
        with running.socket() as connection:
            stream = opened(connection)["stream"]
        until(lambda: running.hub.store.stream(stream, "local")["ended"])  # type: ignore[index]
        assert running.hub.live == {}
        with running.socket() as connection:
            say(connection, type="open", version=1, stream=stream)
            assert hear(connection, "error")["code"] == "ended"


def test_streams_do_not_hear_each_other(server: Running) -> None:
    with server.socket() as one, server.socket() as other:
        opened(one, threshold=1.0)
        opened(other, threshold=0.0)
        one.send(frame(0.0, seed=1))
        other.send(frame(0.0, seed=1))
        hear(one, "event")
        assert not hear(other, "decision")["speaks"]
        say(other, type="ask", text="What happened?")
        assert hear(other, "event")["id"] == 1
        say(one, type="close")
        say(other, type="close")


def test_a_client_that_does_not_read_costs_the_others_nothing(server: Running) -> None:
    with server.socket(max_queue=1) as silent, server.socket() as other:
        say(silent, type="open", version=1, threshold=1.0, kept=True)
        for number in range(20):
            silent.send(frame(number / 2))
        opened(other, threshold=0.0)
        for number in range(3):
            other.send(frame(number / 2))
            assert hear(other, "decision")["time"] == number / 2
        say(other, type="close")


def test_of_a_camera_that_is_too_fast_the_newest_picture_is_watched(server: Running) -> None:
    with server.socket() as connection:
        stream = opened(connection, threshold=1.0)["stream"]
        for number in range(40):
            connection.send(frame(number / 2))
        while hear(connection, "decision")["time"] < 19.5:  # the newest is always watched in the end
            pass
        live = server.hub.live[stream]
        assert live.frames + live.dropped == 40
        say(connection, type="close")


def test_a_recording_loses_no_frame(server: Running) -> None:
    with server.socket() as connection:
        stream = opened(connection, threshold=0.0, policy="all")["stream"]
        for number in range(30):
            connection.send(frame(number / 2))
        times = [hear(connection, "decision")["time"] for _ in range(30)]
        assert times == [number / 2 for number in range(30)] and server.hub.live[stream].dropped == 0
        say(connection, type="close")


def no_memory(*_: object) -> None:
    raise RuntimeError("no memory")


@pytest.mark.parametrize("where", ["connector", "lm.lm_head"])
def test_a_model_step_that_fails_is_told_by_readyz_and_the_server_recovers(
    where: str, tmp_path_factory: pytest.TempPathFactory
) -> None:
    model = tiny_model(DepthPlan("full"))
    with serving(tmp_path_factory.mktemp("fails"), model=model) as running, running.socket() as connection:
        opened(connection, threshold=0.0)
        assert get(f"{running.url}/readyz").status_code == 200
        fails = model.get_submodule(where).register_forward_pre_hook(no_memory)
        connection.send(frame(0.0))
        until(lambda: get(f"{running.url}/readyz").status_code == 503)
        fails.remove()
        hear(connection, "decision")  # the frame was not lost
        assert get(f"{running.url}/readyz").status_code == 200


def test_an_address_that_is_none_is_told_before_anything_is_sent() -> None:
    with pytest.raises(InputError, match="no server's address"):
        vm.connect("ftp://somewhere")


@pytest.mark.parametrize(
    ("wish", "words"),
    [
        ({"stream": "nope"}, "stream nope cannot be; give the id of a stream"),
        ({"threshold": 5}, "threshold 5 cannot be; give a probability from 0 to 1"),
        ({"window": -1}, "window -1 cannot be; give seconds above 0"),
        ({"record_kept": "x"}, "record_kept x cannot be; give True or False"),
    ],
)
def test_an_option_that_cannot_be_is_told_in_a_sentence(wish: dict[str, object], words: str) -> None:
    with pytest.raises(InputError) as refused:
        vm.connect("http://127.0.0.1:9", **wish)
    assert str(refused.value).startswith(words) and "\n" not in str(refused.value)


def test_a_server_that_is_not_there_is_a_connection_error_that_names_the_address_given() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = f"http://127.0.0.1:{taken.getsockname()[1]}"
    with pytest.raises(ConnectionError, match=f"{address} cannot be reached") as refused:
        vm.connect(address)
    assert isinstance(refused.value, ServerUnreachable) and isinstance(refused.value, InputError)
