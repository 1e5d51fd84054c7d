"""Several replicas on one store: which of them are alive, and which holds which stream. Two tables beside the events.

A replica writes its row once a second. It counts as dead when it has not for STALE seconds, or when somebody found that
nothing listens at its address any more. A stream is held by one replica at a time, so that its events have one writer;
what a dead one held may be taken. Times are the database's own, so that the machines' clocks need not agree.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from sqlalchemy import Column, Float, Integer, MetaData, String, Table, Text, delete, literal_column, select, update
from sqlalchemy.dialects import postgresql, sqlite

from videollm_mod.serve.store import Store

BEAT = 1.0  # s between two signs of life
STALE = 10.0  # s without one, after which a replica is dead
KEPT = 86400.0  # s for which the row of a dead one is kept

tables = MetaData()
replicas = Table(
    "replicas",
    tables,
    Column("name", String(40), primary_key=True),
    Column("address", Text, nullable=False),  # http://host:port, for the front alone
    Column("pid", Integer, nullable=False),
    Column("beat", Float, nullable=False),  # when it was last known to be alive
    Column("dead", Integer, nullable=False, default=0),  # 1: known to be, before its time is up
    Column("streams", Integer, nullable=False),  # live ones
    Column("most", Integer, nullable=False),  # that it takes
    Column("frames", Integer, nullable=False),  # watched, since it was started
    Column("events", Integer, nullable=False),
)
holders = Table(
    "holders",
    tables,
    Column("stream", String(22), primary_key=True),
    Column("replica", String(40), nullable=False, index=True),
    Column("client", String(80), nullable=False, index=True),
)


@dataclass(frozen=True)
class Replica:
    """One replica, as it last told."""

    name: str
    address: str
    pid: int
    streams: int = 0
    most: int = 0
    frames: int = 0
    events: int = 0


class Roster:
    """The two tables. Every method may be called from any thread and any process."""

    def __init__(self, store: Store) -> None:
        self._engine, self._sqlite = store.engine, store.sqlite
        # SQLite's is exact to a millisecond
        clock = "(julianday('now') - 2440587.5) * 86400.0" if store.sqlite else "extract(epoch from clock_timestamp())"
        self._now: Any = literal_column(f"({clock})", Float)
        store.make(tables)

    # -- replicas ------------------------------------------------------------------------------------------------------

    def beat(self, one: Replica) -> bool:
        """A sign of life; returns whether the replica counted as alive until now. If not, it may have lost streams."""
        told = {name: getattr(one, name) for name in ("address", "pid", "streams", "most", "frames", "events")}
        with self._engine.begin() as connection:
            mine = replicas.c.name == one.name
            kept = connection.execute(update(replicas).where(mine, self._lives()).values(beat=self._now, **told))
            if kept.rowcount:
                return True
            again = connection.execute(update(replicas).where(mine).values(beat=self._now, dead=0, **told))
            if not again.rowcount:
                connection.execute(replicas.insert().values(name=one.name, beat=self._now, dead=0, **told))
        return False

    def replicas(self) -> list[Replica]:
        """Those that are alive, by name."""
        return self._read(select(replicas).where(self._lives()).order_by(replicas.c.name))

    def everyone(self) -> list[Replica]:
        """The dead ones, too, as far as they are not forgotten."""
        return self._read(select(replicas).order_by(replicas.c.name))

    def bury(self, name: str) -> None:
        """It was found dead; what it held may be taken at once."""
        with self._engine.begin() as connection:
            connection.execute(update(replicas).where(replicas.c.name == name).values(dead=1))

    def leave(self, name: str) -> None:
        """A replica ends: it holds nothing any more."""
        with self._engine.begin() as connection:
            connection.execute(delete(holders).where(holders.c.replica == name))
            connection.execute(update(replicas).where(replicas.c.name == name).values(dead=1))

    def forget(self) -> None:
        """Leave no row of those that have been dead for a day."""
        with self._engine.begin() as connection:
            connection.execute(delete(replicas).where(replicas.c.beat < self._now - KEPT))
            known = select(replicas.c.name)
            connection.execute(delete(holders).where(holders.c.replica.not_in(known)))

    # -- streams -------------------------------------------------------------------------------------------------------

    def take(self, stream: str, client: str, name: str) -> bool:
        """A replica takes a stream that nobody alive holds; returns whether it has it now. One statement: one wins."""
        insert = sqlite.insert if self._sqlite else postgresql.insert
        living = select(replicas.c.name).where(self._lives())
        free = holders.c.replica.not_in(living) | (holders.c.replica == name)
        row = insert(holders).values(stream=stream, replica=name, client=client)
        taken = row.on_conflict_do_update(index_elements=["stream"], set_={"replica": name}, where=free)
        with self._engine.begin() as connection:  # a count of inserted rows is not to be had from every driver
            return connection.execute(taken.returning(holders.c.stream)).first() is not None

    def release(self, stream: str, name: str) -> None:
        with self._engine.begin() as connection:
            mine = (holders.c.stream == stream) & (holders.c.replica == name)
            connection.execute(delete(holders).where(mine))

    def holder(self, stream: str) -> str | None:
        """The name of the living replica that holds a stream."""
        query = select(holders.c.replica).join(replicas, replicas.c.name == holders.c.replica)
        with self._engine.connect() as connection:
            return connection.execute(query.where(holders.c.stream == stream, self._lives())).scalar()

    def held(self, name: str | None = None, client: str | None = None) -> set[str]:
        """The streams that living replicas hold; those of one replica, of one client."""
        query = select(holders.c.stream).join(replicas, replicas.c.name == holders.c.replica).where(self._lives())
        if name is not None:
            query = query.where(holders.c.replica == name)
        if client is not None:
            query = query.where(holders.c.client == client)
        with self._engine.connect() as connection:
            return set(connection.execute(query).scalars())

    def _lives(self) -> Any:
        return (replicas.c.dead == 0) & (replicas.c.beat > self._now - STALE)

    def _read(self, query: Any) -> list[Replica]:
        with self._engine.connect() as connection:
            rows = connection.execute(query).mappings().all()
        return [Replica(**{name: row[name] for name in Replica.__dataclass_fields__}) for row in rows]
