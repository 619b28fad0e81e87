"""Where history's objects are kept: one suite on a folder and on S3, URLs that are refused, a store that dies, a writer that is killed."""

from __future__ import annotations

import multiprocessing
import os
import random
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from history_blocks import T0, bucket, forecast
from s3_server import running_s3, s3_place, s3_server, s3_url
from waiting import until

from coordinator.store.history import ParquetHistory
from coordinator.store.history_queue import HistoryQueue
from coordinator.store.objects import Objects, Root
from shared.errors import ConfigError, HostError
from shared.units import BUCKET_S, MIB

__all__ = ["s3_server", "s3_url"]  # fixtures


@pytest.fixture(params=["folder", "s3"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Path | str:
    made: Path | str = tmp_path if request.param == "folder" else request.getfixturevalue("s3_url")
    return made


@pytest.fixture
def objects(place: Path | str) -> Objects:
    return Root(place).table("buckets")


def read(objects: Objects, name: str) -> bytes:
    with objects.open(name) as source:
        return bytes(source.read())


class TestEveryPlace:
    def test_what_was_put_is_there_and_replaces(self, objects: Objects) -> None:
        assert objects.sizes() == {}
        objects.put("a", pa.py_buffer(b"one"))
        objects.put("b", pa.py_buffer(b"two!"))
        assert objects.sizes() == {"a": 3, "b": 4}
        objects.put("a", pa.py_buffer(b"three"))
        assert (objects.sizes()["a"], read(objects, "a")) == (5, b"three")

    def test_a_large_object(self, objects: Objects) -> None:
        data = np.random.default_rng(1).bytes(23 * MIB)  # several parts of one upload
        objects.put("large", pa.py_buffer(data))
        assert read(objects, "large") == data

    def test_gone_is_gone_and_nobody_minds_twice(self, objects: Objects) -> None:
        objects.put("a", pa.py_buffer(b"one"))
        objects.delete("a")
        objects.delete("a")
        assert objects.sizes() == {}
        with pytest.raises(FileNotFoundError):
            objects.open("a")

    def test_set_aside(self, objects: Objects) -> None:
        objects.put("a", pa.py_buffer(b"one"))
        objects.set_aside("a")
        assert objects.sizes() == {"a.damaged": 3}

    def test_tables_are_apart(self, place: Path | str) -> None:
        Root(place).table("buckets").put("a", pa.py_buffer(b"one"))
        assert Root(place).table("signals").sizes() == {}


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("http://host/bucket", "allowed are s3://, gs://, abfs://, abfss://"),
        ("s3:///prefix", "names no bucket"),
        ("s3://key:secret@bucket/x", "credentials belong in the environment or in a file"),
        ("s3://bucket/x?secret_key=y", "option 'secret_key': allowed are endpoint_override, region, scheme"),
        ("s3://bucket/x?scheme=ftp", "allowed are http and https"),
    ],
)
def test_urls_that_are_refused(url: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message) as refused:
        Root(url)
    assert "secret@" not in str(refused.value)


def test_a_store_that_does_not_answer_is_a_host_error_and_no_damage(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "test")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "test")
    with running_s3() as address:
        url = s3_place(address)
        history = ParquetHistory(url)
        history.append_buckets(bucket(T0))
    with pytest.raises(HostError, match="s3://"):
        history.load(["a"], T0, 1)
    with pytest.raises(HostError, match="s3://"):
        history.append_buckets(bucket(T0 + BUCKET_S))
    with pytest.raises(HostError, match="s3://"):
        ParquetHistory(url)
    assert history.damaged == {}


def test_history_goes_on_by_itself_when_the_store_is_back(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "test")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "test")
    bugs: list[BaseException] = []
    with running_s3() as address:
        history = ParquetHistory(s3_place(address))
        queue = HistoryQueue(history, bugs.append, first_pause_s=0.05)
        queue.put_bucket(bucket(T0), late=False)
        assert queue.settle(10.0)
    for i in range(1, 4):
        queue.put_bucket(bucket(T0 + i * BUCKET_S, value=float(i)), late=False)
    trouble = until(lambda: queue.trouble, "trouble", 30)
    assert "s3://" in trouble.why
    with running_s3(port=int(address.rpartition(":")[2])):
        assert queue.settle(60.0)
        assert queue.trouble is None
        assert history.load(["a"], T0 + 3 * BUCKET_S, 4).mean[0, 0].tolist() == [1, 1, 2, 3]
        queue.close(5.0)
    assert bugs == []


def write_until_killed(place: Path | str, first: int, said: Any) -> None:
    """Buckets and forecasts an hour apart, so that merges and new days come often; each is told of when it is stored."""
    history = ParquetHistory(place)
    for i in range(first, first + 10_000):
        at_s = T0 + i * 12 * BUCKET_S
        history.append_buckets(bucket(at_s, value=float(i)))
        history.append_forecast(forecast(at_s, seed=i))
        said.send(i)


@pytest.mark.parametrize("kills", [4])
def test_killed_at_any_moment_history_holds_what_it_said_it_holds(place: Path | str, kills: int) -> None:
    rng, spawn = random.Random(7), multiprocessing.get_context("spawn")
    stored = -1
    for _ in range(kills):
        heard, said = spawn.Pipe(duplex=False)
        writer = spawn.Process(target=write_until_killed, args=(place, stored + 1, said), daemon=True)
        writer.start()
        for _ in range(rng.randrange(10, 30)):
            stored = heard.recv()
        if (wait_s := rng.uniform(0.0, 0.02)) and heard.poll(wait_s):  # somewhere within the next ones
            stored = heard.recv()
        assert writer.pid is not None
        os.kill(writer.pid, signal.SIGKILL)
        writer.join()
        said.close()
        while heard.poll():
            try:
                stored = heard.recv()
            except EOFError:
                break
        history = ParquetHistory(place)
        end_s = T0 + stored * 12 * BUCKET_S
        loaded = history.load(["a"], end_s, stored * 12 + 1)
        assert loaded.mean[0, 0, ::12].tolist() == [float(i) for i in range(stored + 1)]
        assert [one.issued_s for one in history.forecasts("a", end_s - 20 * 12 * BUCKET_S)][: min(stored, 20) + 1] == [
            T0 + i * 12 * BUCKET_S for i in range(max(0, stored - 20), stored + 1)
        ]
        assert history.damaged == {}
