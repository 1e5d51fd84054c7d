"""What was said, on disk: SQLite with a write-ahead log and a full-text index, or PostgreSQL by its URL.

An event is committed before any client is shown it (`add` returns after the commit), so that a killed server loses none
that somebody saw. SQLAlchemy's Core; every method may be called from any thread.
"""

from __future__ import annotations

import contextlib
import os
import re
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sqlalchemy import (
    Column,
    Engine,
    Float,
    ForeignKey,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    String,
    Table,
    Text,
    UniqueConstraint,
    create_engine,
    delete,
    event,
    func,
    insert,
    select,
    text,
    update,
)
from sqlalchemy.exc import ArgumentError, NoSuchModuleError, SQLAlchemyError

from videollm_mod.doctor import install_command
from videollm_mod.types import InputError, StreamEvent

ROW_BYTES = 120  # what an event takes beside its words, about: keys, numbers, its place in the indexes
BUSY = 10.0  # s that a writer waits for another process
MAKING = 0x76_6D_6F_64  # PostgreSQL's lock while tables are made

tables = MetaData()
streams = Table(
    "streams",
    tables,
    Column("id", String(22), primary_key=True),
    Column("client", String(80), nullable=False, index=True),
    Column("title", Text, nullable=False, default=""),
    Column("source", Text),  # of a stream that the server watches itself; no password in it
    Column("began", Float, nullable=False),  # Unix time
    Column("ended", Float),  # None while it lives, or was killed
    Column("settings", Text, nullable=False, default="{}"),  # JSON: how it was opened
    Column("sent", Integer, nullable=False, default=0),  # number of the newest event that its webhook has taken
)
events = Table(
    "events",
    tables,
    Column("id", Integer, primary_key=True, autoincrement=True),
    Column("stream", String(22), ForeignKey("streams.id", ondelete="CASCADE"), nullable=False),
    Column("number", Integer, nullable=False),  # 1, 2, ... within the stream
    Column("wall", Float, nullable=False, index=True),  # Unix time at which it was stored
    Column("time", Float, nullable=False),
    Column("kind", String(20), nullable=False),
    Column("text", Text, nullable=False),
    Column("frame", Integer, nullable=False),
    Column("question", Text),
    Column("asked", Float),
    Column("probability", Float, nullable=False),
    Column("bytes", Integer, nullable=False),
    UniqueConstraint("stream", "number"),
)
frames = Table(
    "frames",
    tables,
    Column("id", Integer, primary_key=True, autoincrement=True),
    Column("stream", String(22), ForeignKey("streams.id", ondelete="CASCADE"), nullable=False),
    Column("wall", Float, nullable=False),
    Column("time", Float, nullable=False),
    Column("picture", LargeBinary, nullable=False),
    Column("bytes", Integer, nullable=False),
    Index("frames_of", "stream", "time"),
)

FULL_TEXT = (  # SQLite: an index beside the table, kept up by triggers; words are stemmed, "leaves" finds "leave"
    "CREATE VIRTUAL TABLE IF NOT EXISTS said USING fts5(text, question, content='events', content_rowid='id', "
    "tokenize='porter unicode61')",
    "CREATE TRIGGER IF NOT EXISTS said_in AFTER INSERT ON events BEGIN "
    "INSERT INTO said(rowid, text, question) VALUES (new.id, new.text, new.question); END",
    "CREATE TRIGGER IF NOT EXISTS said_out AFTER DELETE ON events BEGIN "
    "INSERT INTO said(said, rowid, text, question) VALUES ('delete', old.id, old.text, old.question); END",
)
POSTGRES_INDEX = (
    "CREATE INDEX IF NOT EXISTS said ON events USING gin "
    "(to_tsvector('english', text || ' ' || coalesce(question, '')))"
)
# words of a question that say nothing about what is looked for
SMALL_WORDS = frozenset(
    "a an and are at be been by did do does for from had has have how i in is it its last me my of on or please show "
    "so that the their then there they this time to was we were what when where which who whom whose why will with "
    "you".split()
)


@dataclass(frozen=True)
class Stored:
    """An event as it is stored."""

    stream: str
    number: int
    wall: float
    event: StreamEvent


class Store:
    """Streams, what was said in them and, where asked for, their pictures."""

    def __init__(self, url: str) -> None:
        """url: a path of a SQLite file, or an SQLAlchemy URL such as postgresql+psycopg://user@host/name."""
        address = url if "://" in url else f"sqlite:///{Path(url).expanduser().absolute()}"
        self.sqlite = address.startswith("sqlite")
        if not self.sqlite and not address.startswith("postgresql"):
            raise InputError(
                f"--store {address.partition('://')[0][:40]}:// is no database that can be used; give the path of an "
                "SQLite file or postgresql+psycopg://USER@HOST/NAME."
            )
        try:
            if self.sqlite and "://" not in url:
                Path(url).expanduser().absolute().parent.mkdir(parents=True, exist_ok=True)
            self.engine: Engine = create_engine(address, pool_pre_ping=not self.sqlite)
            if self.sqlite:
                _make_own(self.engine.url.database)
                event.listen(self.engine, "connect", _prepare_sqlite)
            self.make(tables, FULL_TEXT if self.sqlite else (POSTGRES_INDEX,))
        except (ArgumentError, NoSuchModuleError, ImportError) as error:
            # the error's own words may hold the URL's password
            install = install_command(extra="postgres")
            raise InputError(
                f"--store is no path and no URL whose driver is installed; correct it, or run {install}."
            ) from error
        except OSError as error:
            raise InputError(f"--store {url} cannot be written; give another path.") from error
        except SQLAlchemyError as error:
            shown = url if "://" not in url else "the database"
            raise InputError(f"--store: {shown} cannot be opened; check the path, the server, the rights.") from error

    def make(self, wanted: MetaData, statements: Sequence[str] = ()) -> None:
        """Make the tables that are not there yet, and what else they need; several processes may at once."""
        with self.engine.begin() as connection:
            if not self.sqlite:
                connection.execute(text(f"SELECT pg_advisory_xact_lock({MAKING})"))
            wanted.create_all(connection)
            for statement in statements:
                connection.execute(text(statement))

    def close(self) -> None:
        self.engine.dispose()

    def check(self) -> None:
        """Raises if the database does not answer."""
        with self.engine.connect() as connection:
            connection.execute(select(1))

    # -- streams -------------------------------------------------------------------------------------------------------

    def begin(self, stream: str, client: str, title: str = "", source: str | None = None, settings: str = "{}") -> None:
        """A new stream; of one that is there already, it lives again."""
        with self.engine.begin() as connection:
            again = connection.execute(update(streams).where(streams.c.id == stream).values(ended=None))
            if again.rowcount == 0:
                named = dict(title=_storable(title), source=source, settings=settings)
                row = dict(id=stream, client=client, began=time.time(), **named)
                connection.execute(insert(streams).values(row))

    def end(self, stream: str) -> None:
        with self.engine.begin() as connection:
            connection.execute(update(streams).where(streams.c.id == stream).values(ended=time.time()))

    def stream(self, stream: str, client: str) -> dict[str, Any] | None:
        """A stream of that client, or None."""
        found = self.streams(client, stream=stream)
        return found[0] if found else None

    def streams(self, client: str | None, stream: str | None = None, limit: int = 100) -> list[dict[str, Any]]:
        """A client's streams (everybody's for None), newest first, with `events` and `last`, the time of the newest."""
        counted = select(events.c.stream, func.count().label("events"), func.max(events.c.time).label("last"))
        said = counted.group_by(events.c.stream).subquery()
        columns: Any = [*streams.c, said.c.events, said.c.last]
        query = select(*columns).select_from(streams.outerjoin(said, said.c.stream == streams.c.id))
        if client is not None:
            query = query.where(streams.c.client == client)
        if stream is not None:
            query = query.where(streams.c.id == stream)
        with self.engine.connect() as connection:
            rows = connection.execute(query.order_by(streams.c.began.desc()).limit(limit)).mappings().all()
        return [{**row, "events": row["events"] or 0} for row in rows]

    def unfinished_sources(self) -> list[dict[str, Any]]:
        """Server-side sources that no one has ended: the server was stopped while it watched them."""
        query = select(streams).where(streams.c.source.is_not(None), streams.c.ended.is_(None))
        with self.engine.connect() as connection:
            return [dict(row) for row in connection.execute(query).mappings()]

    def remember(self, stream: str, settings: str) -> None:
        """How a stream was opened, as JSON: to open it again. It may hold secrets, and is shown to nobody."""
        with self.engine.begin() as connection:
            connection.execute(update(streams).where(streams.c.id == stream).values(settings=settings))

    def mark_sent(self, stream: str, number: int) -> None:
        """The webhook has taken the events up to this one."""
        with self.engine.begin() as connection:
            connection.execute(update(streams).where(streams.c.id == stream).values(sent=number))

    def erase(self, stream: str) -> None:
        """Forget a stream with all that was said in it."""
        with self.engine.begin() as connection:
            for table in (frames, events):
                connection.execute(delete(table).where(table.c.stream == stream))
            connection.execute(delete(streams).where(streams.c.id == stream))

    # -- events --------------------------------------------------------------------------------------------------------

    def add(self, said: Sequence[Stored]) -> None:
        """Commit events, all or none."""
        rows = [
            {
                "stream": one.stream, "number": one.number, "wall": one.wall, "time": one.event.time,
                "kind": one.event.kind, "text": _storable(one.event.text), "frame": one.event.frame,
                "question": one.event.question and _storable(one.event.question),
                "asked": one.event.asked, "probability": one.event.probability,
                "bytes": ROW_BYTES + 2 * len(one.event.text) + 2 * len(one.event.question or ""),
            }
            for one in said
        ]  # fmt: skip
        with self.engine.begin() as connection:
            connection.execute(insert(events), rows)

    def events(self, stream: str, after: int = 0, limit: int | None = None) -> list[Stored]:
        """What was said in a stream after event number `after`, oldest first."""
        query = select(events).where(events.c.stream == stream, events.c.number > after)
        with self.engine.connect() as connection:
            rows = connection.execute(query.order_by(events.c.number).limit(limit)).mappings().all()
        return [_stored(row) for row in rows]

    def last_number(self, stream: str) -> int:
        with self.engine.connect() as connection:
            number = connection.execute(select(func.max(events.c.number)).where(events.c.stream == stream)).scalar()
        return number or 0

    def search(self, words: str, client: str, stream: str | None = None, limit: int = 50) -> list[Stored]:
        """Events in which the words were said, best first; a whole question may be given.

        First those with all of the words, then, if there is none, those with any.
        """
        found = re.findall(r"\w+", words.lower())[:32]
        kept = [word for word in found if word not in SMALL_WORDS] or found
        if not kept:
            return []
        for every in (True, False):
            query = self._matching(kept, every).join(streams, streams.c.id == events.c.stream)
            query = query.where(streams.c.client == client)
            if stream is not None:
                query = query.where(events.c.stream == stream)
            with self.engine.connect() as connection:
                rows = connection.execute(query.limit(limit)).mappings().all()
            if rows:
                return [_stored(row) for row in rows]
        return []

    def _matching(self, words: Sequence[str], every: bool) -> Any:
        """Events with all of the words, or with any, best first."""
        if self.sqlite:
            said = text("SELECT rowid AS hit, rank AS place FROM said WHERE said MATCH :words")
            quoted = (" AND " if every else " OR ").join(f'"{word}"' for word in words)
            hits = said.bindparams(words=quoted).columns(hit=Integer, place=Float).subquery()
            return select(events).join(hits, hits.c.hit == events.c.id).order_by(hits.c.place, events.c.id)
        joined = (" & " if every else " | ").join(words)
        spoken = events.c.text + " " + func.coalesce(events.c.question, "")
        document, query = func.to_tsvector("english", spoken), func.to_tsquery("english", joined)
        # PostgreSQL's English knows no "the" or "off": where nothing else is asked for, each word is taken as it stands
        plain = func.to_tsvector("simple", spoken).bool_op("@@")(func.to_tsquery("simple", joined))
        matches = document.bool_op("@@")(query) | ((func.numnode(query) == 0) & plain)
        return select(events).where(matches).order_by(func.ts_rank(document, query).desc(), events.c.id)

    # -- pictures ------------------------------------------------------------------------------------------------------

    def add_frame(self, stream: str, when: float, picture: bytes) -> None:
        row = dict(stream=stream, wall=time.time(), time=when, picture=picture, bytes=len(picture) + ROW_BYTES)
        with self.engine.begin() as connection:
            connection.execute(insert(frames).values(row))

    def frame_times(self, stream: str) -> list[tuple[int, float]]:
        """(id, time) of the stored pictures, oldest first."""
        with self.engine.connect() as connection:
            query = select(frames.c.id, frames.c.time).where(frames.c.stream == stream).order_by(frames.c.time)
            return [(row.id, row.time) for row in connection.execute(query)]

    def picture(self, number: int) -> bytes:
        with self.engine.connect() as connection:
            return bytes(connection.execute(select(frames.c.picture).where(frames.c.id == number)).scalar_one())

    # -- retention -----------------------------------------------------------------------------------------------------

    def size(self) -> int:
        """Bytes of all that is stored, about."""
        with self.engine.connect() as connection:
            return sum(connection.execute(select(func.sum(table.c.bytes))).scalar() or 0 for table in (events, frames))

    def retain(self, days: float | None, most_bytes: int | None, alive: Iterable[str] = ()) -> int:
        """Erase what is older than `days`, then the oldest pictures and events until `most_bytes` are left.

        Streams in which nothing is left go, too, unless they are alive. Returns how many rows went.
        """
        gone = 0
        with self.engine.begin() as connection:
            if days is not None:
                oldest = time.time() - days * 86400
                for table in (frames, events):
                    gone += connection.execute(delete(table).where(table.c.wall < oldest)).rowcount
                stale = select(streams.c.id).where(streams.c.began < oldest, streams.c.id.not_in(list(alive)))
                said = select(events.c.stream).distinct()
                doomed = [row.id for row in connection.execute(stale.where(streams.c.id.not_in(said)))]
                if doomed:
                    connection.execute(delete(frames).where(frames.c.stream.in_(doomed)))
                    connection.execute(delete(streams).where(streams.c.id.in_(doomed)))
            if most_bytes is not None:
                for table in (frames, events):  # pictures first: they weigh more and say less
                    excess = self.size_in(connection) - most_bytes
                    gone += _trim(connection, table, excess) if excess > 0 else 0
        return gone

    @staticmethod
    def size_in(connection: Any) -> int:
        return sum(connection.execute(select(func.sum(table.c.bytes))).scalar() or 0 for table in (events, frames))


def _trim(connection: Any, table: Table, excess: int) -> int:
    """Erase the oldest rows of a table until `excess` bytes have gone; returns how many."""
    running = func.sum(table.c.bytes).over(order_by=table.c.id)
    before = select(table.c.id, (running - table.c.bytes).label("before")).subquery()
    doomed = select(before.c.id).where(before.c.before < excess)
    return int(connection.execute(delete(table).where(table.c.id.in_(doomed))).rowcount)


def _storable(words: str) -> str:
    """PostgreSQL takes every character but this one, which nobody sees."""
    return words.replace("\0", "")


def _stored(row: Any) -> Stored:
    said = StreamEvent(
        row["time"], row["kind"], row["text"], row["frame"], row["question"], row["asked"], row["probability"]
    )
    return Stored(row["stream"], row["number"], row["wall"], said)


def _make_own(path: str | None) -> None:
    """A new file of SQLite is its owner's alone, for it will hold secrets; what lies beside it gets the same mode."""
    if path and not path.startswith((":memory:", "file:")):
        with contextlib.suppress(FileExistsError):
            os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600))


def _prepare_sqlite(connection: Any, record: Any) -> None:
    cursor = connection.cursor()
    cursor.execute(f"PRAGMA busy_timeout={int(BUSY * 1000)}")  # first: the others may have to wait, too
    cursor.execute("PRAGMA journal_mode=WAL")
    cursor.execute("PRAGMA synchronous=FULL")  # a commit is on the disk when it returns, even if the power goes
    cursor.execute("PRAGMA foreign_keys=ON")
    cursor.close()
