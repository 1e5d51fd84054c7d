"""What /metrics tells, in Prometheus' text format; of one server, or of several replicas together."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, Metric, generate_latest
from prometheus_client.parser import text_string_to_metric_families

STEPS = (0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0)
LAGS = (0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0)


class Metrics:
    """Counters of one server; each has a registry of its own, so that several may live in one process."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        named: dict[str, Any] = {"namespace": "videollm_mod", "registry": self.registry}
        self.streams = Gauge("streams", "Live streams", **named)
        self.connected = Gauge("connections", "WebSocket connections", **named)
        self.opened = Counter("streams_opened", "Streams opened", **named)
        self.refused = Counter("refused", "What was refused, by reason", ["reason"], **named)
        self.frames = Counter("frames", "Frames watched", **named)
        self.fps = Gauge("fps", "Frames watched per second, all streams together, over the last seconds", **named)
        self.dropped = Counter("frames_dropped", "Frames that were never watched, by reason", ["reason"], **named)
        self.events = Counter("events", "What was said, by kind", ["kind"], **named)
        self.tokens = Counter("tokens", "Tokens that streams took in, frames and text", **named)
        self.lag = Histogram("lag_seconds", "From a frame's arrival to its decision", buckets=LAGS, **named)
        self.step = Histogram("step_seconds", "One step of the model", buckets=STEPS, **named)
        self.kv_bytes = Gauge("kv_bytes", "KV cache in use, all streams together", **named)
        self.kv_bytes_dense = Gauge("kv_bytes_dense", "What it would be without routing", **named)
        self.reconnects = Counter("source_reconnects", "Times a server-side source was lost", **named)

    def text(self) -> bytes:
        return generate_latest(self.registry)


class _Joined:
    """A collector of samples that others have collected."""

    def __init__(self, texts: Mapping[str, str]) -> None:
        self._texts = texts

    def collect(self) -> Iterator[Metric]:
        families: dict[str, Metric] = {}
        for replica, text in self._texts.items():
            for family in text_string_to_metric_families(text):
                whole = families.setdefault(family.name, Metric(family.name, family.documentation, family.type))
                for sample in family.samples:
                    whole.samples.append(sample._replace(labels={**sample.labels, "replica": replica}))
        yield from families.values()


def joined(texts: Mapping[str, str]) -> bytes:
    """The texts of several replicas as one, each sample with the label `replica`."""
    registry = CollectorRegistry()
    registry.register(_Joined(texts))  # type: ignore[arg-type]
    return generate_latest(registry)
