"""`serve --replicas N`: N whole servers on Ray Serve, one front before them, one store behind them.

Ray Serve places the replicas, one model each (one accelerator each with --device cuda), looks after their health and
starts those anew that died. Its own HTTP proxy is not used: it would have to know the stream before the first message
is read (see front.py). Any cluster will do: the one whose address is in RAY_ADDRESS is joined, or one is started on
this machine, which ends with the command.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import logging
import os
import secrets
import socket
import sys
import threading
import time
from collections.abc import Iterator
from importlib.util import find_spec
from typing import Any

from videollm_mod.types import InputError

APPLICATION = "videollm-mod"
HEALTH_PERIOD, HEALTH_PATIENCE = 2.0, 30.0  # s between two looks at a replica's health, and for it to answer
ATTEMPTS = 3  # to start Ray
STARTING = 60.0  # s for a replica's server to listen, once the model is loaded
LEAVING = 20.0  # s for a replica to write down what was said
NAP = 0.05  # s between two looks whether it listens


def serve_replicas(config: Any, doors: Any, rules: Any, plan: Any) -> dict[str, Any]:
    """The command with --replicas, until it is interrupted; returns the final JSON.

    Its counts are what the replicas told with their signs of life: of a killed one the last second is missing.
    """
    from videollm_mod.serve.command import bounds_of, run
    from videollm_mod.serve.front import make_front
    from videollm_mod.serve.roster import Roster
    from videollm_mod.serve.store import Store

    store = Store(config.store)  # made here, before several processes open it
    roster, bounds = Roster(store), bounds_of(config)
    roster.forget()
    before = {one.name for one in roster.everyone()}
    most = None if config.keep_bytes is None else int(config.keep_bytes)

    def erase_old() -> None:  # here, so that it is done once
        store.retain(config.keep_days, most, roster.held())

    front = make_front(roster, doors, bounds, erase_old if config.keep_days or most else None)
    with _on_ray(config, doors, rules, plan):
        port = run(front, config, bounds)
    ours = [one for one in roster.everyone() if one.name not in before]
    store.close()
    return {
        "ok": True,
        "events": sum(one.events for one in ours),
        "frames": sum(one.frames for one in ours),
        "model": config.model,
        "host": config.host,
        "port": port,
        "replicas": config.replicas,
    }


def check_replicas(config: Any) -> None:
    """Raise InputError for what replicas cannot be run with."""
    from videollm_mod.doctor import install_command

    for name in ("ray", "grpc", "aiohttp"):  # Ray alone is there for `extract --ray`, too
        if find_spec(name) is None:
            raise InputError(
                f"--replicas needs Ray Serve, which is not installed; run {install_command(extra='cluster')}."
            )
    if os.environ.get("RAY_ADDRESS"):
        from videollm_mod.serve.auth import is_loopback

        if "://" not in config.store:
            raise InputError("on a cluster several machines write to --store; give a database's URL.")
        if is_loopback(config.host):
            raise InputError("on a cluster the replicas listen beyond this machine; give --host, and a token.")


@contextlib.contextmanager
def _on_ray(config: Any, doors: Any, rules: Any, plan: Any) -> Iterator[None]:
    """Replicas that run, and are ended in the end; the cluster, too, if it is ours."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # nothing is asked of any other host
    print(f"starting {config.replicas} replicas on Ray Serve ...", file=sys.stderr)
    import ray
    from ray import serve

    from videollm_mod.serve.command import ServeConfig

    joined = os.environ.get("RAY_ADDRESS")
    cores = os.cpu_count() or 1
    threads = config.threads or max(1, cores // config.replicas)
    _begin_ray(joined, max(cores, threads * config.replicas))
    try:
        quiet = {"log_level": "ERROR", "enable_access_log": False}
        logging.getLogger("ray.serve").setLevel(logging.ERROR)
        serve.start(proxy_location="Disabled", logging_config=quiet)
        on_gpu = {"num_gpus": 1} if config.device.startswith("cuda") else {}
        deploy: Any = serve.deployment(
            name="replica", num_replicas=config.replicas, logging_config=quiet,
            ray_actor_options={"num_cpus": threads, **on_gpu},
            health_check_period_s=HEALTH_PERIOD, health_check_timeout_s=HEALTH_PATIENCE,
            graceful_shutdown_timeout_s=LEAVING, graceful_shutdown_wait_loop_s=0.1,
        )  # fmt: skip
        fields = {field.name: getattr(config, field.name) for field in dataclasses.fields(ServeConfig)}
        # what is erased when is the front's to look after
        wish = ServeConfig(**{**fields, "threads": threads, "keep_days": None, "keep_bytes": None})
        local = None if joined else "127.0.0.1"
        serve.run(deploy(ServedReplica).bind(wish, doors, rules, plan, local), name=APPLICATION, route_prefix=None)
        yield
    finally:
        with contextlib.suppress(Exception):  # a cluster that has gone has ended them
            serve.delete(APPLICATION)
            if not joined:
                serve.shutdown()
        ray.shutdown()


def _begin_ray(address: str | None, cores: int) -> None:
    """Join the cluster at an address, or start one here. Raises InputError."""
    import ray

    # the object store is the smallest that Ray takes: nothing goes through it
    here: dict[str, Any] = {"num_cpus": cores, "include_dashboard": False, "object_store_memory": 100 * 2**20}
    for attempt in range(ATTEMPTS):
        try:
            ray.init(address=address or "local", logging_level=logging.ERROR, **({} if address else here))
            return
        except Exception as error:  # Ray gives its own processes 30 s, which is not enough on a busy machine
            ray.shutdown()
            if attempt == ATTEMPTS - 1:
                where = f"the cluster at {address} cannot be joined" if address else "no cluster could be started here"
                raise InputError(f"--replicas: {where} ({str(error)[:200] or type(error).__name__}).") from error


class ServedReplica:
    """One replica, in a process of its own: the server as ever, on a free port, and its place in the roster."""

    _thread: threading.Thread | None = None

    def __init__(self, config: Any, doors: Any, rules: Any, plan: Any, host: str | None) -> None:
        """host: the address to listen on; None: the machine's in the cluster."""
        import ray
        import uvicorn

        from videollm_mod.serve import command
        from videollm_mod.serve.roster import Replica

        command.log_to_stderr(config.log_requests)
        host = host or ray.util.get_node_ip_address()
        name = f"{socket.gethostname()[:20]}-{os.getpid()}-{secrets.token_hex(4)}"
        listening = socket.create_server((host, 0), family=socket.AF_INET6 if ":" in host else socket.AF_INET)
        shown = f"[{host}]" if ":" in host else host
        address = f"http://{shown}:{listening.getsockname()[1]}"
        app, self._hub = command.build(config, doors, rules, plan, Replica(name, address, os.getpid()))
        self._uvicorn = uvicorn.Server(command.settings(app, self._hub.bounds))
        self._thread = threading.Thread(target=self._run, args=(listening,), name="server", daemon=True)
        self._thread.start()
        until = time.monotonic() + STARTING
        while not self._uvicorn.started:
            if not self._lives or time.monotonic() > until:
                raise RuntimeError("the replica's server did not start")
            time.sleep(NAP)

    def _run(self, listening: socket.socket) -> None:
        asyncio.run(self._uvicorn.serve(sockets=[listening]))
        self._hub.store.close()

    @property
    def _lives(self) -> bool:
        return self._thread is not None and self._thread.is_alive()

    def check_health(self) -> None:
        """Ray Serve starts the replica anew when this raises."""
        if not (self._lives and self._hub.worker.healthy):
            raise RuntimeError("the model's thread or the server has ended, or steps keep failing")

    def __del__(self) -> None:
        """Ray Serve calls this when it ends a replica: what was said is written down, connections are closed."""
        if self._thread is not None:
            self._uvicorn.should_exit = True
            self._thread.join(LEAVING)
