"""Traces at a real collector's door: an HTTP server that decodes OTLP's protobuf. One trace for each cycle, a span for each stage."""

from __future__ import annotations

import asyncio
import gzip
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from coordinator.main import Coordinator
from coordinator.pki import create_ca, issue_coordinator
from coordinator.tracing import OtlpTracing, open_tracing
from shared.config import CoordinatorConfig, TlsConfig

pytest.importorskip("opentelemetry.sdk", reason="the extra otlp is not installed")

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest


class Collector:
    """Takes OTLP over HTTP; `spans` are decoded, with their resource's attributes."""

    def __init__(self) -> None:
        self.spans: list[tuple[dict[str, Any], Any]] = []
        collector = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                assert self.headers["Content-Type"] == "application/x-protobuf"
                if self.headers.get("Content-Encoding") == "gzip":
                    body = gzip.decompress(body)
                for part in ExportTraceServiceRequest.FromString(body).resource_spans:
                    told = {each.key: each.value.string_value or each.value.int_value for each in part.resource.attributes}
                    collector.spans += [(told, span) for scope in part.scope_spans for span in scope.spans]
                self.send_response(200)
                self.send_header("Content-Length", "0")
                self.end_headers()

            def log_message(self, *_arguments: object) -> None:
                """Not into the tests' output."""

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}/v1/traces"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def close(self) -> None:
        self.server.shutdown()
        self.server.server_close()


@pytest.fixture
def collector() -> Iterator[Collector]:
    server = Collector()
    yield server
    server.close()


def test_a_cycle_is_a_trace_and_a_stage_a_span(collector: Collector) -> None:
    tracing = OtlpTracing(collector.url, epoch=7)
    for cycle in range(2):
        tracing.stage("forecast", 0.5, cycle)
        tracing.stage("decide", 0.2, cycle)
        tracing.stage("place", 0.1, cycle + 1)
    tracing.close()
    assert {told["service.name"] for told, _ in collector.spans} == {"tidegate"}
    assert {told["tidegate.epoch"] for told, _ in collector.spans} == {7}
    traces: dict[bytes, list[Any]] = {}
    for _, span in collector.spans:
        traces.setdefault(span.trace_id, []).append(span)
    assert len(traces) == 2
    for spans in traces.values():
        by_name = {span.name: span for span in spans}
        assert by_name.keys() == {"decision cycle", "forecast", "decide", "place"}
        root = by_name["decision cycle"]
        assert not root.parent_span_id
        assert {span.parent_span_id for name, span in by_name.items() if span is not root} == {root.span_id}
        assert root.start_time_unix_nano == by_name["forecast"].start_time_unix_nano
        assert root.end_time_unix_nano == by_name["decide"].end_time_unix_nano
        took_ns = by_name["forecast"].end_time_unix_nano - by_name["forecast"].start_time_unix_nano
        assert took_ns == 500_000_000
    cycles = {each.value.int_value for _, span in collector.spans for each in span.attributes if each.key == "tidegate.cycle"}
    assert cycles == {1, 2}


def test_a_stage_without_a_cycle_is_a_trace_of_its_own(collector: Collector) -> None:
    tracing = OtlpTracing(collector.url, epoch=1)
    tracing.stage("train", 1.0, 0)
    tracing.close()
    assert [(span.name, span.parent_span_id) for _, span in collector.spans] == [("train", b"")]


def test_the_coordinators_stages_arrive(collector: Collector, tmp_path: Path) -> None:
    create_ca(tmp_path / "pki")
    files = issue_coordinator(tmp_path / "pki", ["localhost"], ["127.0.0.1"])
    tls = TlsConfig(ca=str(files.ca), certificate=str(files.certificate), key=str(files.key))
    config = CoordinatorConfig(state_dir=str(tmp_path / "state"), tls=tls, ray=False, trace_url=collector.url)

    async def play() -> None:
        coordinator = Coordinator(config)
        for name in ("forecast", "decide"):
            with coordinator._stage(name):
                pass
        await coordinator.stop()

    asyncio.run(play())
    assert {span.name for _, span in collector.spans} == {"decision cycle", "forecast", "decide"}


def test_off_costs_nothing_not_even_an_import() -> None:
    assert open_tracing("", 1) is None
    code = "import sys; from coordinator.tracing import open_tracing; open_tracing('', 1); sys.exit('opentelemetry' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False, timeout=60).returncode == 0
