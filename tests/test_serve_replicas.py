"""Several replicas on one store: who is alive, who holds which stream, and the front that finds the right one."""

from __future__ import annotations

import dataclasses
import json
import os
import re
import signal
import socket
import threading
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import httpx
import numpy as np
import pytest
from serve_cases import (
    PATIENCE,
    STARTING,
    Listening,
    Running,
    frame,
    get,
    hear,
    opened,
    post,
    random_model,
    running,
    say,
    until,
)
from websockets.exceptions import ConnectionClosed, InvalidStatus

import videollm_mod as vm
from videollm_mod.serve import roster as rosters
from videollm_mod.serve.auth import Doors
from videollm_mod.serve.command import ServeConfig, check_flags
from videollm_mod.serve.front import make_front
from videollm_mod.serve.hub import Hub
from videollm_mod.serve.limits import Bounds
from videollm_mod.serve.roster import Replica, Roster
from videollm_mod.serve.server import Server
from videollm_mod.serve.sources import Rules
from videollm_mod.serve.store import Store
from videollm_mod.types import Frame, InputError

ONE, TWO = Replica("one", "http://127.0.0.1:1", 11, most=4), Replica("two", "http://127.0.0.1:2", 22, most=4)

CLIP = Path(vm.__file__).parent / "assets" / "demo.mp4"


BOTH = ["sqlite", pytest.param("postgresql", marks=pytest.mark.slow)]


def database_of(request: pytest.FixtureRequest, folder: Path) -> str:
    """An empty database of the kind that the test's parameter names, as `--store` takes it."""
    sqlite = request.param == "sqlite"
    return str(folder / "events.db") if sqlite else str(request.getfixturevalue("postgres").database())


@pytest.fixture(params=BOTH)
def database(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    return database_of(request, tmp_path)


@pytest.fixture
def roster(database: str) -> Roster:
    found = Roster(Store(database))
    assert not found.beat(ONE) and not found.beat(TWO)  # they begin
    return found


def test_a_stream_is_held_by_one_replica_until_that_is_dead_or_lets_it_go(roster: Roster) -> None:
    assert roster.take("s", "anna", "one") and roster.take("s", "anna", "one")
    assert not roster.take("s", "anna", "two") and roster.holder("s") == "one"
    roster.bury("one")
    assert roster.holder("s") is None and [one.name for one in roster.replicas()] == ["two"]
    assert roster.take("s", "anna", "two") and roster.holder("s") == "two"
    roster.release("s", "one")  # it is another's
    assert roster.holder("s") == "two"
    roster.release("s", "two")
    assert roster.holder("s") is None and roster.take("s", "anna", "two")


def test_a_replica_that_comes_back_is_told_and_has_lost_what_was_taken(roster: Roster) -> None:
    roster.take("s", "anna", "one"), roster.take("t", "anna", "one")
    roster.bury("one")
    roster.take("s", "anna", "two")
    assert not roster.beat(ONE) and roster.beat(ONE)
    assert roster.held("one") == {"t"} and roster.held("two") == {"s"} and roster.held(client="anna") == {"s", "t"}
    assert roster.held(client="bert") == set()


def test_without_a_sign_of_life_a_replica_is_dead(roster: Roster, monkeypatch: pytest.MonkeyPatch) -> None:
    roster.take("s", "anna", "one")
    monkeypatch.setattr(rosters, "STALE", -1.0)  # as if it were long ago
    assert roster.replicas() == [] and roster.holder("s") is None and len(roster.everyone()) == 2
    monkeypatch.setattr(rosters, "KEPT", -1.0)
    roster.forget()
    assert roster.everyone() == []


def test_what_a_replica_tells_is_read_by_the_others_and_its_leaving_frees_all(roster: Roster) -> None:
    told = dataclasses.replace(ONE, streams=3, frames=7, events=2)
    assert roster.beat(told) and roster.replicas()[0] == told
    roster.take("s", "anna", "one")
    roster.leave("one")
    assert roster.held() == set() and roster.take("s", "anna", "two")


def test_of_many_that_want_a_stream_at_once_one_gets_it(database: str) -> None:
    names = [f"replica{number}" for number in range(6)]
    Roster(Store(database))
    won: list[str] = []
    gate = threading.Barrier(len(names))

    def want(name: str) -> None:
        mine = Roster(Store(database))  # a connection of its own, as another process has
        mine.beat(Replica(name, "", os.getpid()))
        for number in range(5):
            gate.wait(60)
            if mine.take(f"s{number}", "anna", name):
                won.append(f"s{number}")

    threads = [threading.Thread(target=want, args=(name,)) for name in names]
    [one.start() for one in threads]
    [one.join(60) for one in threads]
    assert sorted(won) == [f"s{number}" for number in range(5)]


# -- two replicas and their front, in threads --------------------------------------------------------------------------


class Cluster:
    """Two servers on one store, and the front before them."""

    def __init__(self, database: str, **hub: object) -> None:
        self.path, self.doors = database, Doors("127.0.0.1", {})
        self.roster = Roster(Store(self.path))
        self.replicas = {name: self.start(name, **hub) for name in ("one", "two")}
        until(lambda: len(self.roster.replicas()) == 2)
        self.front = Listening(make_front(self.roster, self.doors, Bounds()), Bounds())

    def start(self, name: str, **hub: object) -> Running:
        store, listening = Store(self.path), socket.create_server(("127.0.0.1", 0))
        row = Replica(name, f"http://127.0.0.1:{listening.getsockname()[1]}", os.getpid())
        made = Hub(random_model(), store, roster=Roster(store), replica=row, linger=30.0, **hub)  # type: ignore[arg-type]
        rules = Rules(("rtsp://127.0.0.1:*",), private=True)
        return Running(Server(made, self.doors, rules), listening)

    def holding(self, stream: str) -> str:
        """The replica in which a stream lives."""
        (name,) = [name for name, one in self.replicas.items() if stream in one.hub.live]
        return name

    def stop(self) -> None:
        for one in (self.front, *self.replicas.values()):
            one.stop()


@pytest.fixture(scope="module", params=BOTH)
def cluster(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    made = Cluster(database_of(request, tmp_path_factory.mktemp("cluster")))
    yield made
    made.stop()


@pytest.fixture
def web(cluster: Cluster) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=cluster.front.url, timeout=PATIENCE) as client:
        yield client


def test_two_clients_are_watched_by_different_replicas_and_come_back_to_their_own(
    cluster: Cluster, web: httpx.Client
) -> None:
    with cluster.front.socket() as first, cluster.front.socket() as second:
        streams = [opened(one, threshold=1.0)["stream"] for one in (first, second)]
        homes = [cluster.holding(stream) for stream in streams]
        assert sorted(homes) == ["one", "two"]
        for number in range(2):
            for one in (first, second):
                one.send(frame(number / 2))
                assert hear(one, "event")["id"] == number + 1
    for stream, home in zip(streams, homes):
        with cluster.front.socket() as again:
            welcome = opened(again, stream=stream, after=1)
            assert welcome["resumed"] and not welcome["reopened"] and cluster.holding(stream) == home
            assert hear(again, "event")["id"] == 2
            again.send(frame(1.0))
            assert hear(again, "event")["frame"] == 2  # of one and the same session
            assert web.post(f"/streams/{stream}/ask", json={"text": "What happened?"}).json()["id"] == 4
            assert web.get(f"/streams/{stream}").json()["meters"] is not None
            row = next(row for row in web.get("/streams").json() if row["id"] == stream)
            assert row["alive"] and row["events"] == 4
            say(again, type="close")
            assert "ended" in hear(again, "closed")["reason"]
        assert not web.get(f"/streams/{stream}").json()["alive"]


def test_the_front_hands_on_pages_and_refusals_as_they_are(cluster: Cluster, web: httpx.Client) -> None:
    direct = httpx.Client(base_url=cluster.replicas["one"].url, timeout=PATIENCE)
    for path in (
        "/",
        "/app.js",
        "/openapi.json",
        "/v1/models",
        "/search?q=red%20ring",
        "/nowhere",
        "/streams/x",
        "/%2e%2e/hub.py",
    ):
        mine, theirs = web.get(path), direct.get(path)
        assert (mine.status_code, mine.content) == (theirs.status_code, theirs.content)
        assert dict(mine.headers, date="") == dict(theirs.headers, date="")
        assert [name for name, _ in mine.headers.multi_items()] == sorted({*mine.headers}, key=list(mine.headers).index)
    assert web.get("/info", headers={"Origin": "https://evil.example"}).status_code == 403
    assert web.get("/info", headers={"Host": "evil.example"}).status_code == 421
    assert web.post("/streams", content=b"x" * 100_000).status_code == 413
    assert web.get("/info").json()["max_streams"] == 128 and web.get("/healthz").json() == {"ok": True}
    with pytest.raises(InvalidStatus):
        cluster.front.socket(additional_headers={"Origin": "https://evil.example"})
    with cluster.front.socket() as connection:
        say(connection, type="ask", text="Anybody there?")
        assert hear(connection, "error")["fatal"]
        with pytest.raises(ConnectionClosed):
            connection.recv(timeout=PATIENCE)
    direct.close()


def test_metrics_are_told_of_each_replica_and_readiness_of_any(cluster: Cluster, web: httpx.Client) -> None:
    text = web.get("/metrics").text
    for name in ("one", "two"):
        assert re.search(rf'^videollm_mod_frames_total{{replica="{name}"}} \d', text, re.M)
        assert f'videollm_mod_lag_seconds_bucket{{le="0.1",replica="{name}"}}' in text
    assert text.count("# TYPE videollm_mod_frames_total counter") == 1 and web.get("/readyz").status_code == 200


def test_events_are_followed_through_the_front_to_their_end(cluster: Cluster, web: httpx.Client) -> None:
    with cluster.front.socket() as connection:
        stream = opened(connection, threshold=1.0)["stream"]
        connection.send(frame(0.0))
        hear(connection, "event")
        with web.stream("GET", f"/streams/{stream}/events", headers={"Accept": "text/event-stream"}) as answer:
            lines = answer.iter_lines()
            assert next(lines) == "id: 1"
            say(connection, type="close")
            assert "event: closed" in list(lines)


def test_a_stream_whose_replica_has_gone_begins_anew_elsewhere_with_what_was_said_and_its_client_is_told(
    database: str,
) -> None:
    cluster = Cluster(database)
    try:
        black, white = (Frame(plain(value), time, 0) for value, time in ((0, 0.0), (200, 0.5)))
        with (
            vm.connect(cluster.front.url, threshold=1.0, timeout=PATIENCE) as stream,
            cluster.front.socket() as other,
        ):
            said = stream.push(black)
            calm = opened(other, threshold=0.0, policy="all")["stream"]
            home, refuge = cluster.holding(stream.id), cluster.holding(calm)
            assert home != refuge
            wish = {"source": "rtsp://127.0.0.1:9/nobody-there"}
            camera = post(f"{cluster.replicas[home].url}/streams", json=wish).json()["id"]
            cluster.replicas[home].hub.roster = None  # it dies without a word
            cluster.replicas[home].stop()
            name = stream.id
            said += stream.push(white)
            assert stream.id == name and stream.welcome.reopened and not stream.welcome.resumed
            assert name in cluster.replicas[refuge].hub.live and [event.time for event in said] == [0.0, 0.5]
            assert stream.ask("What happened?").kind == "answer"
            stored = cluster.replicas[refuge].hub.store.events(name)
            assert [one.number for one in stored] == [1, 2, 3]
            until(lambda: camera in cluster.replicas[refuge].hub.live)  # what nobody asks for is taken over, too
            assert cluster.roster.holder(camera) == refuge
            other.send(frame(0.0))  # and the other knows of nothing
            assert hear(other, "decision")["time"] == 0.0
    finally:
        cluster.stop()


def plain(value: int) -> np.ndarray:
    return np.full((32, 32, 3), value, np.uint8)


def test_replicas_are_refused_where_they_cannot_be_run(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(InputError, match="--replicas"):
        check_flags(ServeConfig(replicas=0))
    if find_spec("grpc") is None:
        with pytest.raises(InputError, match="Ray Serve, which is not installed"):
            check_flags(ServeConfig(replicas=2))
        return
    check_flags(ServeConfig(replicas=2))
    monkeypatch.setenv("RAY_ADDRESS", "10.0.0.1:6379")
    with pytest.raises(InputError, match="a database's URL"):
        check_flags(ServeConfig(replicas=2))
    with pytest.raises(InputError, match="and a token"):
        check_flags(ServeConfig(replicas=2, store="postgresql://host/name"))


# -- on Ray Serve ------------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.skipif(find_spec("grpc") is None, reason="Ray Serve is not installed: pip install -e '.[cluster]'")
def test_of_two_replicas_on_ray_serve_one_is_killed_and_its_client_goes_on_in_the_other(
    database: str, tmp_path: Path
) -> None:
    with running(tmp_path, "--replicas", "2", store=database) as server:
        roster = Roster(Store(database))
        begun = roster.replicas()
        assert len({one.pid for one in begun} | {server.process.pid}) == 3
        clip = list(vm.open_video(CLIP, fps=2, end=3.0))
        with vm.connect(server.url, threshold=1.0, timeout=STARTING) as lost, server.socket() as calm:
            other = opened(calm, threshold=0.0, policy="all")["stream"]
            said = [event for one in clip[:3] for event in lost.push(one)]
            home, refuge = roster.holder(lost.id), roster.holder(other)
            assert {home, refuge} == {one.name for one in begun}
            calm.send(frame(0.0))
            assert hear(calm, "decision")["time"] == 0.0

            os.kill(next(one.pid for one in begun if one.name == home), signal.SIGKILL)
            said += [event for one in clip[3:] for event in lost.push(one)]
            assert lost.welcome.reopened and roster.holder(lost.id) == refuge
            assert [event.time for event in said] == [one.time for one in clip]
            listed = get(f"{server.url}/streams/{lost.id}/events").json()["events"]
            assert [one["event"]["text"] for one in listed] == [event.text for event in said]
            calm.send(frame(0.5))  # the same connection, the same session
            assert hear(calm, "decision")["time"] == 0.5 and roster.holder(other) == refuge
            say(calm, type="close")
            hear(calm, "closed")

        # Ray Serve starts another in its place, and it is given work
        until(lambda: len(roster.replicas()) == 2, STARTING)
        assert home not in {one.name for one in roster.replicas()}
        with server.socket() as first, server.socket() as second:
            homes = {roster.holder(opened(one)["stream"]) for one in (first, second)}
            assert homes == {one.name for one in roster.replicas()}
        os.killpg(server.process.pid, signal.SIGINT)  # as a terminal does
        assert server.process.stdout is not None
        last = json.loads(server.process.stdout.read().strip().splitlines()[-1])
        assert server.process.wait(PATIENCE) == 0 and last["replicas"] == 2
        assert last["events"] >= len(clip[3:])  # of the killed one, what it had told by its last sign of life
        pids = [one.pid for one in roster.everyone()]
        assert roster.replicas() == [] and len(pids) == 3
        until(lambda: not any(Path(f"/proc/{pid}").exists() for pid in pids))
