"""A real S3 server on this machine (moto over HTTP) and an empty place in it for each test."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import httpx
import pytest
from moto.moto_server.werkzeug_app import DomainDispatcherApplication, create_backend_app
from werkzeug.serving import WSGIRequestHandler, make_server

BUCKET = "history"
# moto names the answer to the end of a multipart upload otherwise than S3 does, and Arrow reads the name; spaces keep the length
MISNAMED, NAMED = b"CompleteMultipartUploadResponse", b"CompleteMultipartUploadResult  "

_places = itertools.count()


class _Quiet(WSGIRequestHandler):
    def log(self, type: str, message: str, *args: Any) -> None:
        """Nothing: a line for each request would bury the test's own."""


def _as_s3_says(app: Callable[..., Iterable[bytes]]) -> Callable[..., Iterable[bytes]]:
    return lambda environ, start: (chunk.replace(MISNAMED, NAMED) for chunk in app(environ, start))


@contextmanager
def running_s3(port: int = 0) -> Iterator[str]:
    """HOST:PORT of a server with an empty bucket. A later one of this process finds what an earlier one held."""
    app = _as_s3_says(DomainDispatcherApplication(create_backend_app))
    server = make_server("127.0.0.1", port, app, threaded=True, request_handler=_Quiet)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    httpx.put(f"http://127.0.0.1:{server.port}/{BUCKET}").raise_for_status()
    try:
        yield f"127.0.0.1:{server.port}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


@pytest.fixture(scope="session")
def s3_server() -> Iterator[str]:
    """HOST:PORT of the server."""
    with running_s3() as address:
        yield address


@pytest.fixture
def s3_url(s3_server: str, monkeypatch: pytest.MonkeyPatch) -> str:
    """history_url of a place that nobody has written to."""
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "test")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "test")
    return s3_place(s3_server)


def s3_place(address: str) -> str:
    """URL of a new place on that server."""
    return f"s3://{BUCKET}/fleet-{next(_places)}?endpoint_override={address}&scheme=http&region=us-east-1"
