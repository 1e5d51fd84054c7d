"""A PostgreSQL server of our own for tests: a fresh cluster in a folder, on a free port here, gone at the end.

Debian's package `postgresql` brings the programs, the extra `[postgres]` the driver. PostgreSQL refuses to run as root;
where the tests do, it runs as another user.
"""

from __future__ import annotations

import os
import pwd
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from importlib.util import find_spec
from pathlib import Path
from typing import Any

OTHERS = ("postgres", "nobody")  # users to run as, where we are root
PATIENCE = 120.0  # s


def program(name: str) -> str | None:
    """initdb or postgres: on the path, or where Debian puts them."""
    places = sorted(Path("/usr/lib/postgresql").glob(f"*/bin/{name}"), reverse=True)
    return shutil.which(name) or next((str(place) for place in places), None)


def missing() -> str | None:
    """Why there is no PostgreSQL here, or None."""
    if program("initdb") is None or program("postgres") is None:
        return "no PostgreSQL server here: apt-get install postgresql"
    if find_spec("psycopg") is None:
        return "no driver for PostgreSQL: pip install -e '.[postgres]'"
    if os.getuid() == 0 and _other() is None:
        return "PostgreSQL does not run as root, and there is no other user here"
    return None


def _other() -> str | None:
    known = {one.pw_name for one in pwd.getpwall()}
    return next((name for name in OTHERS if name in known), None)


class Postgres:
    """The server; `database()` makes an empty database and returns its URL."""

    def __init__(self) -> None:
        self._folder = Path(tempfile.mkdtemp(prefix="videollm_mod_postgres_"))
        self._as: dict[str, Any] = {"stdout": subprocess.DEVNULL, "stderr": subprocess.STDOUT, "cwd": self._folder}
        if os.getuid() == 0:
            user = pwd.getpwnam(_other() or "")
            os.chown(self._folder, user.pw_uid, user.pw_gid)
            self._as |= {"user": user.pw_uid, "group": user.pw_gid, "extra_groups": []}
        self._made = 0
        with socket.create_server(("127.0.0.1", 0)) as free:
            self.port = free.getsockname()[1]
        words = ["--pgdata=data", "--username=tests", "--auth=trust", "--encoding=UTF8", "--locale=C.UTF-8"]
        subprocess.run([program("initdb") or "", *words], check=True, **self._as)
        self._process = self._start()

    def _start(self) -> subprocess.Popen[bytes]:
        words = ["-D", "data", "-h", "127.0.0.1", "-p", str(self.port), "-k", str(self._folder)]
        process = subprocess.Popen([program("postgres") or "", *words], **self._as)
        until = time.monotonic() + PATIENCE
        while True:
            try:
                self.run("SELECT 1")
                return process
            except Exception:
                assert process.poll() is None and time.monotonic() < until, "PostgreSQL did not start"
                time.sleep(0.1)

    def run(self, statement: str) -> None:
        """One statement, outside a transaction."""
        import psycopg

        with psycopg.connect(self._address("postgres"), autocommit=True) as connection:
            connection.execute(statement)  # type: ignore[arg-type]

    def _address(self, name: str) -> str:
        return f"postgresql://tests@127.0.0.1:{self.port}/{name}"

    def database(self) -> str:
        """The URL of a new, empty database, as `--store` takes it."""
        self._made += 1
        self.run(f"CREATE DATABASE case{self._made}")
        return self._address(f"case{self._made}").replace("postgresql", "postgresql+psycopg", 1)

    def restart(self) -> None:
        """The server stops at once, as if it crashed, and starts again: every connection is lost, no commit is."""
        self._stop(signal.SIGQUIT)
        self._process = self._start()

    def _stop(self, how: signal.Signals) -> None:
        self._process.send_signal(how)
        self._process.wait(PATIENCE)

    def close(self) -> None:
        self._stop(signal.SIGQUIT)  # what it holds is thrown away
        shutil.rmtree(self._folder)
