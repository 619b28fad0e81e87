"""Checks of this installation: the running agent, certificates, clock, state folder, journal, pause."""

from __future__ import annotations

import contextlib
import os
import shutil
import ssl
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

from agent.acting.journal import read_journal
from agent.doctor.finding import Finding, fail, ok, warn
from shared.config import AgentConfig
from shared.control import Unreachable, ask
from shared.errors import ConfigError, HostError, PeerError, Refusal
from shared.tls import peer_host_id, server_context
from shared.units import MIB

EXPIRY_WARN_DAYS: Final = 30  # time enough to issue and roll out another one
OFFSET_WARN_MS: Final = 1000.0  # samples are put into 5-minute buckets by this host's clock; plans carry deadlines of seconds
OFFSET_FAIL_MS: Final = 30_000.0  # fresh plans would look stale, or stale ones fresh
JOURNAL_BYTES: Final = 16 * MIB  # two files of 4 MiB, and room to turn them over
ASK_TIMEOUT_S: Final = 5.0


def running(config: AgentConfig) -> Iterator[Finding]:
    """Does it answer, sample, and reach its coordinator?"""
    try:
        status = _status(config)
    except Unreachable as error:
        yield warn("agent", str(error), "systemctl start tidegate-agent; journalctl -u tidegate-agent says why it ended")
        return
    yield ok("agent", f"answers on {config.socket_path}: version {status['version']}, mode {status['mode']}, {status['vms']} VMs")
    for name, what in sorted(status["sampling_failures"].items()):
        yield warn("agent", f"sampling: {name}: {what}", "the other readings go on; see this one's own log")
    for vm_id in status["vms_quarantined"]:
        yield warn("agent", f"VM {vm_id} is left alone: its libvirt call does not come back", f"virsh domstate {vm_id}; look at its QEMU")
    if status["settings_error"]:
        yield warn(
            "agent", f"the newest reload was refused: {status['settings_error']}", "correct it, then systemctl reload tidegate-agent"
        )
    if config.coordinator_urls and not status["link_up"]:
        urls = ", ".join(config.coordinator_urls)
        yield warn("agent", f"no coordinator at {urls}: the host works alone", "journalctl -u tidegate-agent shows the reason")


def certificates(config: AgentConfig) -> Iterator[Finding]:
    """Present, readable, belonging together, signed by our authority, not expired, and of this host."""
    if not config.tls:
        if not config.coordinator_urls:
            yield ok("certificates", "none needed: no coordinator is configured")
        return
    try:
        context = server_context(Path(config.tls.ca), Path(config.tls.certificate), Path(config.tls.key))
    except ConfigError as error:
        yield fail("certificates", str(error), f"tidegate pki host FOLDER {config.host_id} on the coordinator makes all three files")
        return
    try:
        shown, host_id = _shake_hands(context, config.tls.certificate, config.tls.key)
    except (ssl.SSLError, PeerError) as error:
        reason = getattr(error, "verify_message", "") or str(error)
        yield fail("certificates", f"{config.tls.certificate}: {reason}", f"tidegate pki host FOLDER {config.host_id} makes a new one")
        return
    if host_id != config.host_id:
        mend = f"set host_id to {host_id}, or make a certificate for {config.host_id}"
        yield fail("certificates", f"the certificate is for {host_id}, this host is {config.host_id}: the coordinator turns it away", mend)
    end = datetime.fromtimestamp(ssl.cert_time_to_seconds(shown["notAfter"]), UTC)
    days = (end - datetime.now(UTC)).days
    says = f"valid until {end:%Y-%m-%d}, {days} days"
    if days < EXPIRY_WARN_DAYS:
        yield warn("certificates", says, f"tidegate pki host FOLDER {config.host_id} makes a new one; then restart the agent")
    else:
        yield ok("certificates", says)


def clock(config: AgentConfig) -> Iterator[Finding]:
    """Offset to the coordinator's clock, as the running agent saw it."""
    if not config.coordinator_urls:
        yield ok("clock", "no coordinator to compare with")
        return
    try:
        offset_ms = _status(config)["coordinator_clock_offset_ms"]
    except Unreachable:
        offset_ms = None
    if offset_ms is None:
        yield warn("clock", "offset to the coordinator not known: there was no connection yet", "start the agent and the coordinator")
        return
    says = f"{abs(offset_ms) / 1000:.2f} s {'behind' if offset_ms > 0 else 'ahead of'} the coordinator"
    mend = "let chrony or systemd-timesyncd keep both clocks"
    if abs(offset_ms) >= OFFSET_FAIL_MS:
        yield fail("clock", says, mend)
    elif abs(offset_ms) >= OFFSET_WARN_MS:
        yield warn("clock", says, mend)
    else:
        yield ok("clock", says)


def state(config: AgentConfig) -> Iterator[Finding]:
    """Can be written, has room for spool and journal, is nobody else's."""
    folder = Path(config.state_dir)
    if not folder.is_dir():
        mend = f"the agent makes it at its start, as root; or install -d -m 700 {folder}"
        yield warn("state", f"{folder}: does not exist", mend)
        return
    if not os.access(folder, os.W_OK | os.X_OK):
        yield fail("state", f"{folder}: cannot be written", f"chown root {folder}; chmod 700 {folder}; is its file system read-only?")
        return
    if folder.stat().st_mode & 0o022:
        yield warn("state", f"{folder}: others may write there", f"chmod 700 {folder}")
    spool = folder / "spool"
    used = sum(path.stat().st_size for path in spool.iterdir()) if spool.is_dir() else 0
    needs = max(0, config.spool_max_bytes - used) + JOURNAL_BYTES
    free = shutil.disk_usage(folder).free
    says = f"{folder}: {free // MIB} MiB free, at most {needs // MIB} MiB more are needed"
    if free < JOURNAL_BYTES:
        yield fail("state", says, "make room: an agent that cannot write its journal changes nothing and ends")
    elif free < needs:
        yield warn("state", says, "make room, or lower spool_max_bytes")
    else:
        yield ok("state", says)


def journal(config: AgentConfig) -> Iterator[Finding]:
    """Every line can be read."""
    folder = Path(config.state_dir) / "journal"
    if not folder.is_dir():
        yield ok("journal", "none yet")
        return
    try:
        entries, damaged = read_journal(folder)
    except HostError as error:
        yield fail("journal", str(error), "sudo tidegate-agent doctor; look at the disk where it fails for root as well")
        return
    if damaged:
        says = f"{entries} entries, {damaged} damaged lines are left out"
        yield warn("journal", says, "a power cut does that; nothing to do unless it happens again: then look at the disk")
    else:
        yield ok("journal", f"{entries} entries, none damaged")


def pause(config: AgentConfig) -> Iterator[Finding]:
    """Who holds the kill switch."""
    path = Path(config.pause_file)
    held = []
    if path.exists():
        held.append(f"the file {path}")
    with contextlib.suppress(Unreachable):  # said by the check of the agent
        held += [holder for holder in _status(config)["paused_by"] if holder != "file"]
    if held:
        yield warn("pause", f"paused by {', '.join(held)}: nothing is changed on this host", "tidegate-agent resume; remove the file")
    else:
        yield ok("pause", f"not paused; creating {path} pauses at once")


def _status(config: AgentConfig) -> dict[str, Any]:
    try:
        found: dict[str, Any] = ask(Path(config.socket_path), "status", timeout_s=ASK_TIMEOUT_S)
    except (HostError, Refusal) as error:
        raise Unreachable(str(error)) from error
    return found


def _shake_hands(context: ssl.SSLContext, certificate: str, key: str) -> tuple[dict[str, Any], str]:
    """Show our certificate to ourselves as the coordinator would see it, in memory: it is checked whole, by the code that decides there."""
    ours = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    ours.check_hostname = False
    ours.verify_mode = ssl.CERT_NONE  # the other side is ourselves as well
    ours.load_cert_chain(certificate, key)
    to_server, to_client = ssl.MemoryBIO(), ssl.MemoryBIO()
    client = ours.wrap_bio(to_client, to_server)
    server = context.wrap_bio(to_server, to_client, server_side=True)
    done = False
    while not done:
        for side in (client, server):
            try:
                side.do_handshake()
                done = side is server  # the client's certificate is judged last
            except ssl.SSLWantReadError:
                continue
    return dict(server.getpeercert() or {}), peer_host_id(server)
