"""Traces by OpenTelemetry's protocol (OTLP over HTTP): one for each decision cycle, with a span for each of its stages.

Off unless `trace_url` is set; then nothing of OpenTelemetry is even imported. A trace begins with the stage "forecast" and its root span
ends with "decide", when plans go out; "place" and "train" run beside the cycle and are spans of the cycle in which they end. Spans are
sent by a thread of the SDK from a bounded queue: a collector that is away costs spans, never a decision. Times are real, even where
decisions run on a simulated clock. Source: https://opentelemetry.io/docs/specs/otlp/
"""

from __future__ import annotations

import time
from typing import Any, Final, Protocol

from shared.errors import ConfigError

QUEUE: Final = 2048  # spans; a cycle has five
TIMEOUT_S: Final = 5.0
STOP_MS: Final = 2000  # for what still waits when the process ends
FIRST, LAST = "forecast", "decide"


class Tracing(Protocol):
    """Where stages are told."""

    def stage(self, name: str, took_s: float, cycle: int) -> None:
        """A stage has just ended; `cycle` counts those that were finished before."""
        ...

    def close(self) -> None:
        """Send what waits, for at most STOP_MS."""
        ...


def open_tracing(url: str, epoch: int) -> Tracing | None:
    """None = off. Raises ConfigError where the extra is not installed."""
    if not url:
        return None
    try:
        return OtlpTracing(url, epoch)
    except ImportError as error:
        raise ConfigError(f"trace_url: {error.name} is missing; install tidegate[otlp]") from error


class OtlpTracing:
    """Stages as spans. `url`: where spans are posted, e.g. http://127.0.0.1:4318/v1/traces."""

    def __init__(self, url: str, epoch: int) -> None:
        # none of it is paid for by who traces nothing
        from opentelemetry import trace  # noqa: PLC0415
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter  # noqa: PLC0415
        from opentelemetry.sdk.resources import Resource  # noqa: PLC0415
        from opentelemetry.sdk.trace import TracerProvider  # noqa: PLC0415
        from opentelemetry.sdk.trace.export import BatchSpanProcessor  # noqa: PLC0415

        self._under: Any = trace.set_span_in_context
        self._provider: Any = TracerProvider(resource=Resource.create({"service.name": "tidegate", "tidegate.epoch": epoch}))
        exporter = OTLPSpanExporter(endpoint=url, timeout=TIMEOUT_S)
        self._provider.add_span_processor(BatchSpanProcessor(exporter, max_queue_size=QUEUE))
        self._tracer: Any = self._provider.get_tracer("tidegate")
        self._root: Any = None

    def stage(self, name: str, took_s: float, cycle: int) -> None:
        ended_ns = time.time_ns()
        started_ns = ended_ns - int(took_s * 1e9)
        if name == FIRST:
            self._end(started_ns)  # of a cycle that did not come to its end
            self._root = self._tracer.start_span("decision cycle", start_time=started_ns, attributes={"tidegate.cycle": cycle + 1})
        context = None if self._root is None else self._under(self._root)
        self._tracer.start_span(name, context=context, start_time=started_ns).end(ended_ns)
        if name == LAST:
            self._end(ended_ns)

    def close(self) -> None:
        self._end(time.time_ns())
        self._provider.force_flush(STOP_MS)
        self._provider.shutdown()

    def _end(self, ended_ns: int) -> None:
        if self._root is not None and self._root.is_recording():
            self._root.end(ended_ns)
