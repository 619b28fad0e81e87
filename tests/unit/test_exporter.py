"""The agent's /metrics: what promtool thinks of it, who it answers, per-VM series and their end."""

from __future__ import annotations

import asyncio
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from agent.sampling.detail import VmDetail
from agent.service.exporter import MAX_CONNECTIONS, MAX_HEAD_BYTES, Exporter
from agent.service.vm_series import MAX_VMS, render_vms
from shared.errors import ConfigError
from shared.metrics import AGENT_METRICS, AGENT_VM_METRICS, Metrics
from shared.model import VmSample
from shared.units import UNLIMITED

PROMTOOL = shutil.which("promtool")


def full_page() -> bytes:
    """Every metric of the agent with a value, and two VMs."""
    metrics = Metrics(AGENT_METRICS)
    for row in AGENT_METRICS:
        labels = dict.fromkeys(row.labels, "x")
        if row.kind == "counter":
            metrics.add(row.name, 2, **labels)
        elif row.kind == "gauge":
            metrics.set(row.name, 1.5, **labels)
        else:
            metrics.observe(row.name, 0.02, **labels)
    values: dict[str, Any] = {row.field: 1000 for row in AGENT_VM_METRICS}
    sample = VmSample(**{name: value for name, value in values.items() if name in VmSample.__struct_fields__})
    detail = VmDetail(**{name: value for name, value in values.items() if name in VmDetail.__struct_fields__}, kvm_per_s={"exits": 7})
    return metrics.render() + render_vms({"a": sample, "b": VmSample(cpu_quota_millicores=UNLIMITED)}, {"a": detail}, {"a": "web"})


@pytest.mark.skipif(PROMTOOL is None, reason="promtool is not installed (Debian: prometheus)")
def test_promtool_has_nothing_to_say() -> None:
    assert 'tidegate_agent_vm_kvm_events_per_second{vm_id="a",name="web",counter="exits"} 7' in full_page().decode()
    done = subprocess.run([str(PROMTOOL), "check", "metrics"], input=full_page(), capture_output=True, check=False, timeout=60)
    assert (done.returncode, done.stderr.decode(), done.stdout.decode()) == (0, "", "")


def test_unknown_is_absent_and_unlimited_is_infinite() -> None:
    text = render_vms({"a": VmSample(cpu_quota_millicores=UNLIMITED, cpu_used_millicores=1500)}, {}, {"a": "web"}).decode()
    assert 'tidegate_agent_vm_cpu_quota_cores{vm_id="a",name="web"} +Inf\n' in text
    assert 'tidegate_agent_vm_cpu_used_cores{vm_id="a",name="web"} 1.5\n' in text
    assert "memory" not in text


def test_a_name_cannot_add_lines_or_labels() -> None:
    text = render_vms({"a": VmSample(vcpus=1)}, {}, {"a": 'x"} 1\nevil{y="\\'}).decode()
    assert text.splitlines()[-1] == 'tidegate_agent_vm_vcpus{vm_id="a",name="x\\"} 1\\nevil{y=\\"\\\\"} 1'


def test_vms_beyond_the_bound_have_no_series() -> None:
    text = render_vms({f"vm-{n:05d}": VmSample(vcpus=1) for n in range(MAX_VMS + 5)}, {}, {}).decode()
    assert sum(line.startswith("tidegate_agent_vm_vcpus{") for line in text.splitlines()) == MAX_VMS


def test_every_field_of_the_table_exists_once() -> None:
    fields = [row.field for row in AGENT_VM_METRICS]
    assert set(fields) <= {*VmSample.__struct_fields__, *VmDetail.__struct_fields__}
    assert len(set(fields)) == len(fields)
    assert len({row.name for row in AGENT_VM_METRICS}) == len(fields)


async def fetch(path: Path, request: bytes) -> bytes:
    reader, writer = await asyncio.open_unix_connection(str(path))
    writer.write(request)
    try:
        return await asyncio.wait_for(reader.read(), 5)
    except ConnectionResetError:
        return b""
    finally:
        writer.close()


def test_serves_on_a_socket_and_only_that_page(tmp_path: Path) -> None:
    async def scenario() -> None:
        path = tmp_path / "metrics.sock"
        exporter = Exporter(lambda: b"up 1\n")
        await exporter.start("127.0.0.1:0", str(path))
        assert path.stat().st_mode & 0o777 == 0o660
        answer = await fetch(path, b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n")
        head, _, body = answer.partition(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 200 OK\r\n") and body == b"up 1\n" and b"Content-Length: 5\r\n" in head
        assert (await fetch(path, b"HEAD /metrics?x=1 HTTP/1.1\r\n\r\n")).endswith(b"\r\n\r\n")
        assert (await fetch(path, b"GET /etc/passwd HTTP/1.1\r\n\r\n")).startswith(b"HTTP/1.1 404 ")
        assert (await fetch(path, b"POST /metrics HTTP/1.1\r\n\r\n")).startswith(b"HTTP/1.1 405 ")
        assert await fetch(path, b"x" * (MAX_HEAD_BYTES * 2)) == b""
        silent = [await asyncio.open_unix_connection(str(path)) for _ in range(MAX_CONNECTIONS)]
        await asyncio.sleep(0)
        assert await fetch(path, b"GET /metrics HTTP/1.1\r\n\r\n") == b""
        for _, writer in silent:
            writer.close()
            await writer.wait_closed()
        for _ in range(100):  # until the server has seen them go
            if answer := await fetch(path, b"GET /metrics HTTP/1.1\r\n\r\n"):
                break
        assert answer.endswith(b"up 1\n")
        await exporter.stop()
        assert not path.exists()

    asyncio.run(scenario())


@pytest.mark.parametrize(
    ("address", "socket", "key"), [("127.0.0.1:99999", "", "exporter_address"), ("", "/nonexistent/x", "exporter_socket")]
)
def test_a_place_that_cannot_be_had_is_a_config_error(address: str, socket: str, key: str) -> None:
    with pytest.raises(ConfigError, match=key):
        asyncio.run(Exporter(lambda: b"").start(address, socket))
