"""The server's parts by themselves: what is stored and found, what is let in, what may be opened, what a message is."""

from __future__ import annotations

import socket
import sqlite3
import struct
import threading
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from postgres import Postgres
from serve_cases import picture
from sqlalchemy.exc import IntegrityError
from stream_cases import frames, tiny_model

from videollm_mod.depth import DepthPlan
from videollm_mod.depth.quantised import QuantisedLayer
from videollm_mod.serve import protocol
from videollm_mod.serve.auth import Doors, Refused, read_tokens, token_subprotocol
from videollm_mod.serve.command import ServeConfig, build, check_flags, run, where_to_look
from videollm_mod.serve.limits import Bounds, Rate, TooLarge, decode_picture
from videollm_mod.serve.roster import Roster
from videollm_mod.serve.schemas import documents
from videollm_mod.serve.sources import Rules, hidden, is_private
from videollm_mod.serve.store import Store, Stored
from videollm_mod.serve.worker import Worker
from videollm_mod.stream.engine import Engine
from videollm_mod.types import Frame, InputError, StreamEvent

DOCS = Path(__file__).parents[1] / "docs"
A, B = "a" * 22, "b" * 22


@pytest.fixture(params=["sqlite", pytest.param("postgresql", marks=pytest.mark.slow)])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Store]:
    """An empty store with a stream of anna's, in both databases."""
    sqlite = request.param == "sqlite"
    made = Store(str(tmp_path / "events.db") if sqlite else request.getfixturevalue("postgres").database())
    made.begin(A, "anna")
    yield made
    made.close()


def said(stream: str, number: int, text: str, *, wall: float = 1e9, question: str | None = None) -> Stored:
    kind = "narration" if question is None else "answer"
    return Stored(stream, number, wall, StreamEvent(number / 2, kind, text, number, question))


def test_docs_hold_the_openapi_description_and_the_schema_of_messages_as_they_are() -> None:
    for name, text in documents().items():
        stored = (DOCS / name).read_text(encoding="utf-8")
        assert stored == text, f"{name} is old: python -m videollm_mod.serve.schemas docs"


# -- store -------------------------------------------------------------------------------------------------------------


def test_what_is_added_is_on_the_disk_when_add_returns(tmp_path: Path) -> None:
    store = Store(str(tmp_path / "events.db"))
    store.begin(A, "anna")
    store.add([said(A, 1, "A ring appears."), said(A, 2, "It leaves.")])
    with sqlite3.connect(f"file:{tmp_path}/events.db?mode=ro", uri=True) as other:
        assert other.execute("select text from events order by number").fetchall() == [
            ("A ring appears.",),
            ("It leaves.",),
        ]
        assert other.execute("pragma journal_mode").fetchone() == ("wal",)


def test_the_stores_new_file_is_its_owners_alone_and_an_old_ones_mode_is_left(tmp_path: Path) -> None:
    paths = [tmp_path / name for name in ("new.db", "by_url.db", "old.db")]
    paths[2].touch(0o644)
    stores = [Store(str(paths[0])), Store(f"sqlite:///{paths[1]}"), Store(str(paths[2]))]
    for store in stores:
        store.begin(A, "anna")
    modes = {path.name: path.stat().st_mode & 0o777 for path in tmp_path.iterdir()}
    assert {"new.db", "new.db-wal", "new.db-shm", "by_url.db", "by_url.db-wal"} <= set(modes)
    assert {mode for name, mode in modes.items() if not name.startswith("old")} == {0o600}
    assert modes["old.db"] == 0o644
    for store in stores:
        store.close()


def test_a_whole_question_finds_what_was_said_whatever_the_form_of_its_words(store: Store) -> None:
    store.begin(B, "bert")
    store.add([
        said(A, 1, "The red square enters from the left."),
        said(A, 2, "The blue ring leaves to the top."),
        said(A, 3, "The red square leaves to the right."),
        said(A, 4, "Two.", question="How many rings are there?"),
        said(B, 1, "The red square leaves to the left."),
    ])  # fmt: skip
    found = store.search("When did the red square leave?", "anna")
    assert [one.number for one in found] == [3]
    assert [one.number for one in store.search("purple square?", "anna")] == [1, 3]  # any word, where none has all
    assert {one.number for one in store.search("ring", "anna")} == {2, 4}
    assert store.search("the", "anna", stream=A) and store.search("zebra", "anna") == []
    assert [one.stream for one in store.search("square", "bert")] == [B]


@given(st.text(max_size=40))
def test_no_search_breaks_the_index(store: Store, words: str) -> None:
    if not store.last_number(A):
        store.add([said(A, 1, 'A "quoted" AND NOT near* sentence')])
    assert isinstance(store.search(words, "anna"), list)


def test_a_character_that_no_database_takes_costs_no_sentence(store: Store) -> None:
    store.begin(B, "anna", title="door\0")
    store.add([said(B, 1, "A ring\0 appears.", question="What\0?")])
    (found,) = store.search("ring", "anna")
    assert (found.event.text, found.event.question) == ("A ring appears.", "What?")
    assert store.stream(B, "anna")["title"] == "door"  # type: ignore[index]


def test_all_that_was_said_is_given_back_however_much(store: Store) -> None:
    store.add([said(A, number, "A ring appears.") for number in range(1, 12_001)])
    assert len(store.events(A)) == 12_000 and len(store.events(A, after=11_990)) == 10


@pytest.mark.slow
def test_postgresql_searches_by_its_index_and_two_may_make_its_tables_at_once(postgres: Postgres) -> None:
    url, gate, made, failed = postgres.database(), threading.Barrier(4), [], []

    def make() -> None:
        gate.wait(60)
        try:
            made.append(Store(url))
            Roster(made[-1])
        except Exception as error:
            failed.append(error)

    threads = [threading.Thread(target=make) for _ in range(4)]
    [one.start() for one in threads]
    [one.join(60) for one in threads]
    assert not failed
    made[0].begin(A, "anna")
    made[0].add([said(A, number, f"word{number} appears.") for number in range(1, 2001)])
    query = made[0]._matching(["word77"], True).compile(dialect=made[0].engine.dialect)
    with made[0].engine.connect() as connection:
        connection.exec_driver_sql("SET enable_seqscan = off")  # a table this small would be read through
        plan = connection.exec_driver_sql(f"EXPLAIN {query}", query.params).scalars().all()
    assert any("Index Scan on said" in line for line in plan)
    [one.close() for one in made]


@pytest.mark.slow
def test_postgresql_that_crashes_and_comes_back_loses_no_event(postgres: Postgres) -> None:
    store = Store(postgres.database())
    store.begin(A, "anna")
    store.add([said(A, 1, "A ring appears.")])
    postgres.restart()
    store.add([said(A, 2, "It leaves.")])  # the old connections are noticed
    assert [one.number for one in store.events(A)] == [1, 2]
    store.close()


def test_an_event_number_is_given_once(store: Store) -> None:
    store.add([said(A, 1, "one")])
    with pytest.raises(IntegrityError):
        store.add([said(A, 2, "two"), said(A, 1, "again")])
    assert store.last_number(A) == 1  # all or none


def test_retention_erases_by_age_and_by_size_and_search_forgets_with_it(store: Store) -> None:
    import time

    now = time.time()
    store.add([said(A, 1, "ancient ring", wall=now - 10 * 86400), said(A, 2, "fresh ring", wall=now)])
    assert store.retain(days=7, most_bytes=None, alive=[A]) == 1
    assert [one.number for one in store.search("ring", "anna")] == [2]
    store.add([said(A, number, "x" * 500, wall=now) for number in range(3, 23)])
    store.retain(days=None, most_bytes=5000)
    assert store.size() <= 5000 and store.last_number(A) == 22  # the newest stay
    assert store.retain(days=None, most_bytes=5000) == 0


def test_stored_pictures_go_before_sentences_when_room_is_short(store: Store) -> None:
    store.add([said(A, 1, "one")])
    for number in range(5):
        store.add_frame(A, number / 2, b"x" * 1000)
    store.retain(days=None, most_bytes=2500)
    assert [when for _, when in store.frame_times(A)] == [1.5, 2.0] and store.last_number(A) == 1


@pytest.mark.parametrize("url", ["postgresql+nodriver://user:secret@host/x", "nonsense://x", "/proc/no/where.db"])
def test_a_store_that_cannot_be_is_told_without_its_password(url: str) -> None:
    with pytest.raises(InputError) as refused:
        Store(url)
    assert "--store" in str(refused.value) and "secret" not in str(refused.value)


# -- doors -------------------------------------------------------------------------------------------------------------


@given(st.text(max_size=30))
def test_no_token_but_the_right_one_is_let_in(given_token: str) -> None:
    doors = Doors("0.0.0.0", {"the-right-token-1": "anna"})
    headers = {"host": "x", "authorization": f"Bearer {given_token}"}
    if given_token == "the-right-token-1":
        assert doors.client(headers, changes=False) == "anna"
    else:
        with pytest.raises(Refused):
            doors.client(headers, changes=False)


@pytest.mark.parametrize(
    "host", ["evil.example", "127.0.0.1.evil.example", "evil.example:8000", "", "[", "localhost@evil.example:1"]
)
def test_a_name_that_is_not_this_machine_is_not_let_in_without_a_token(host: str) -> None:
    with pytest.raises(Refused):
        Doors("127.0.0.1", {}).client({"host": host}, changes=False)


@pytest.mark.parametrize("host", ["localhost", "localhost:8000", "127.0.0.1:8000", "[::1]:8000", "127.0.0.2"])
def test_this_machine_is_let_in_without_a_token(host: str) -> None:
    assert Doors("127.0.0.1", {}).client({"host": host}, changes=True) == "local"


def test_tokens_are_read_with_their_names_and_short_ones_refused(tmp_path: Path) -> None:
    path = tmp_path / "tokens"
    path.write_text("# who may\nanna 0123456789abcdef\n\n0123456789abcdeg\n")
    tokens = read_tokens(path, {"VIDEOLLM_MOD_TOKEN": "0123456789abcdeh"})
    assert tokens == {"0123456789abcdef": "anna", "0123456789abcdeg": "client4", "0123456789abcdeh": "owner"}
    for text in ("short", "anna b c", "", f"{'a' * 81} 0123456789abcdef"):
        path.write_text(text)
        with pytest.raises(InputError):
            read_tokens(path, {})
    assert token_subprotocol("a?>~").startswith("token.") and "=" not in token_subprotocol("a")


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        ({"host": "0.0.0.0"}, "a token is needed"),
        ({"port": 70000}, "--port 70000"),
        ({"keep": 1.5}, "--keep 1.5"),
        ({"max_streams": 0}, "--max-streams 0"),
        ({"linger": float("nan")}, "--linger nan"),
        ({"linger": float("inf")}, "--linger inf"),
        ({"frame_bytes": 10}, "--frame-bytes 10"),
        ({"allow_source": ("camera.local",)}, "--allow-source camera.local"),
        ({"allow_source": ("file:///etc",)}, "--allow-source"),
        ({"allow_origin": ("evil",)}, "--allow-origin evil"),
        ({"token_file": Path("/no/such")}, "--token-file"),
    ],
)
def test_flags_that_cannot_be_are_refused_before_anything_is_loaded(
    flags: dict[str, object], words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("VIDEOLLM_MOD_TOKEN", raising=False)
    with pytest.raises(InputError) as refused:
        check_flags(ServeConfig(**flags))  # type: ignore[arg-type]
    assert words in str(refused.value) and str(refused.value).count("\n") == 0


def test_a_database_that_cannot_be_used_and_a_short_token_are_told_with_the_mend(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"mysql:// is no database that can be used; .*SQLite.*postgresql") as refused:
        Store("mysql://me:secret@host/x")
    assert "secret" not in str(refused.value)
    with pytest.raises(InputError, match="the token in VIDEOLLM_MOD_TOKEN is too short"):
        read_tokens(None, {"VIDEOLLM_MOD_TOKEN": "short"})


@pytest.mark.parametrize(
    ("config", "token", "words"),
    [
        (ServeConfig(), "", "http://127.0.0.1:8011/ in a browser"),
        (ServeConfig(host="::1"), "", "http://[::1]:8011/ in a browser"),
        (
            ServeConfig(host="0.0.0.0"), "0123456789abcdef",
            "http://127.0.0.1:8011/ in a browser, from other machines by this one's name or address and port 8011, "
            "and type a token in there (or open /#token=TOKEN)",
        ),
    ],
)  # fmt: skip
def test_what_is_printed_can_be_opened(
    config: ServeConfig, token: str, words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VIDEOLLM_MOD_TOKEN", token)
    assert where_to_look(config, 8011) == words


@pytest.mark.parametrize("host", ["999.1.1.1", "192.0.2.1"])
def test_a_host_that_is_no_address_of_this_machine_is_told_so(host: str) -> None:
    with pytest.raises(InputError, match=rf"--host {host} is no address"):
        run(None, ServeConfig(host=host, port=0), Bounds())


def test_a_large_model_is_served_in_bf16_with_rounded_caches(tmp_path: Path) -> None:
    config = ServeConfig(model="tiny", dtype="bfloat16", kv="int8", store=str(tmp_path / "events.db"))
    _, hub = build(config, *check_flags(config))
    try:
        assert {weight.dtype for weight in hub.model.parameters()} == {torch.bfloat16}
        stream = hub.worker.engine.open()
        assert all(isinstance(layer, QuantisedLayer) for layer in stream._session._cache.layers)
        side = hub.model.encoder.tower.image_size
        stream.push(Frame(np.zeros((side, side, 3), np.uint8), 0.0, 0))
        assert hub.worker.engine.step() is not None and stream._session._cache.seen > 50
    finally:
        hub.store.close()


# -- sources -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "number",
    ["127.0.0.1", "10.1.2.3", "192.168.0.1", "169.254.169.254", "100.64.0.1", "0.0.0.0", "224.0.0.1", "::1", "fe80::1",
     "fe80::1%eth0", "fd00::1", "::ffff:127.0.0.1", "64:ff9b::7f00:1", "2002:7f00:1::", "::"],
)  # fmt: skip
def test_addresses_inside_count_as_private_however_they_are_wrapped(number: str) -> None:
    assert is_private(number)


@pytest.mark.parametrize("number", ["8.8.8.8", "1.1.1.1", "2606:4700::1111", "::ffff:8.8.8.8", "64:ff9b::808:808"])
def test_addresses_of_the_internet_do_not(number: str) -> None:
    assert not is_private(number)


def test_a_source_that_is_not_on_the_list_is_named_with_its_port() -> None:
    with pytest.raises(InputError, match=r"^rtsp://10\.0\.0\.7:9000 is not on this server's list"):
        Rules(("rtsp://10.0.0.*",)).check("rtsp://me:pw@10.0.0.7:9000/x")
    with pytest.raises(InputError, match=r"^http://\[::1\] is not on this server's list"):
        Rules().check("http://[::1]/x")


def test_only_what_the_list_names_may_be_opened() -> None:
    rules = Rules(("rtsp://10.0.0.*", "https://*.example", "http://cam:8080"))
    for fine in ("rtsp://10.0.0.7/x", "RTSP://10.0.0.7/x".lower(), "https://a.example/v.mp4", "http://cam:8080/"):
        rules.check(fine)
    for wrong in (
        "rtsp://10.0.1.7/x", "http://a.example/", "https://example/", "https://a.example.evil/", "http://cam/",
        "https://a.example@evil/", "https://evil/?a.example", "rtsp://10.0.0.7:9000/", "https://a.example:22/",
        "rtsp://10.0.0.7\\@evil/",
    ):  # fmt: skip
        with pytest.raises(InputError):
            rules.check(wrong)


def test_a_name_is_looked_up_once_and_the_connection_goes_to_what_was_checked(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []
    numbers = iter(["8.8.8.8", "127.0.0.1"])  # a rebinding name server: public at first, then inside

    def look_up(host: str, port: int, **_: object) -> list[object]:
        asked.append(host)
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (next(numbers), port))]

    monkeypatch.setattr(socket, "getaddrinfo", look_up)
    rules = Rules(("rtsp://*.example",))
    target = rules.resolve("rtsp://user:pw@door.example/cam?x=1")
    assert target.pinned == "rtsp://user:pw@8.8.8.8:554/cam?x=1" and target.host == "door.example"
    assert asked == ["door.example"]
    with pytest.raises(InputError, match="private"):
        rules.resolve("rtsp://door.example/")


def test_a_password_in_an_address_is_hidden() -> None:
    assert hidden("rtsp://me:secret@cam:8554/x") == "rtsp://me:***@cam:8554/x"


# -- pictures and messages ---------------------------------------------------------------------------------------------


def test_a_picture_of_a_hundred_megapixels_is_refused_by_its_header() -> None:
    head = struct.pack(">IIBBBBB", 10_000, 10_000, 8, 2, 0, 0, 0)
    chunk = b"IHDR" + head
    png = b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + chunk + struct.pack(">I", zlib.crc32(chunk))
    with pytest.raises(TooLarge, match="10000 x 10000"):
        decode_picture(png + b"\0\0\0\0IDAT" + b"\0" * 20, Bounds())


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
def test_pictures_are_known_by_their_content(kind: str) -> None:
    assert decode_picture(picture(size=(40, 30), kind=kind), Bounds()).shape == (30, 40, 3)


@given(data=st.binary(max_size=200), kind=st.sampled_from(["JPEG", "PNG", "WEBP"]), cut=st.integers(0, 400))
def test_no_bytes_make_the_decoder_fail_otherwise_than_in_a_sentence(data: bytes, kind: str, cut: int) -> None:
    for damaged in (data, picture(kind=kind)[:cut] + data):
        try:
            decode_picture(damaged, Bounds())
        except InputError as error:
            assert str(error).endswith(".")


@given(st.one_of(st.text(), st.binary()))
def test_no_message_makes_the_reader_fail_otherwise_than_in_a_sentence(text: str | bytes) -> None:
    for read in (
        protocol.read_client,
        lambda data: protocol.unpack_frame(data.encode() if isinstance(data, str) else data),
    ):
        try:
            read(text)  # type: ignore[operator]
        except InputError as error:
            assert "\n" not in str(error)


@given(st.floats(0, 1e6), st.binary(min_size=1, max_size=50))
def test_a_frame_message_gives_back_what_was_put_in(time: float, data: bytes) -> None:
    assert protocol.unpack_frame(protocol.pack_frame(time, data)) == (time, data)


@given(st.lists(st.booleans(), min_size=1, max_size=60))
def test_kept_tokens_give_back_what_was_put_in(bits: list[bool]) -> None:
    packed = protocol.pack_kept({3: np.array(bits)})
    assert protocol.unpack_kept(packed, len(bits))[3].tolist() == bits


def test_a_rate_lets_a_burst_through_and_then_no_more() -> None:
    rate = Rate(5)
    assert sum(rate.allows() for _ in range(100)) in (10, 11)


def test_another_version_is_told_with_the_one_that_is_spoken() -> None:
    with pytest.raises(InputError, match=r"^version is 2; this server speaks 1\.$"):
        protocol.read_client('{"type": "open", "version": 2}')
    with pytest.raises(InputError):  # more digits than Python turns into a number
        protocol.read_client('{"type": "open", "version": ' + "9" * 5000 + "}")
    with pytest.raises(InputError, match=r"^version is no number; this server speaks 1\.$"):
        protocol.read_client('{"type": "open", "version": "secret"}')


# -- the worker --------------------------------------------------------------------------------------------------------


def test_a_worker_that_makes_tokens_ahead_sees_every_frame_and_ends() -> None:
    engine, told, seen = Engine(tiny_model(DepthPlan("interleaved", 0.4))), [], threading.Event()

    def handle(outputs: list[Any], seconds: float) -> None:
        told.extend(outputs)
        if len(told) == 12:
            seen.set()

    worker = Worker(engine, handle, ahead=True)
    worker.start()
    streams = [engine.open(threshold=0.0, drop="all") for _ in range(2)]
    for pair in zip(frames(6), frames(6, seed=1)):
        for stream, frame in zip(streams, pair):
            stream.push(frame)
        worker.wake()
    assert seen.wait(30) and worker.healthy
    worker.stop()
    assert not any(thread.is_alive() for thread in (worker._model, worker._scribe, worker._tower))
    assert sorted(output.decision[0] for output in told) == sorted(2 * [frame.time for frame in frames(6)])
