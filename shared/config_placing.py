"""Settings of placement and of what becomes of it: moves in waves, hosts that sleep. Part of shared/config.py, which hands them on."""

from __future__ import annotations

from typing import Annotated, Final, Literal

import msgspec
from msgspec import Meta

from shared.errors import ConfigError

HOST_VALUE: Final = r"^[A-Za-z0-9][A-Za-z0-9._:@-]*=\S+$"  # HOST_ID=VALUE


def by_host(name: str, pairs: tuple[str, ...]) -> dict[str, str]:
    """host -> value of a setting made of HOST_ID=VALUE. Raises ConfigError for a host that is named twice."""
    found: dict[str, str] = {}
    for pair in pairs:
        host_id, _, value = pair.partition("=")
        if host_id in found:
            raise ConfigError(f"{name}: {host_id} is named twice")
        found[host_id] = value
    return found


class PlacementConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Where VMs run, and what becomes of placement's moves."""

    execute: Annotated[
        Literal["advise", "execute"], Meta(description="advise = nothing is migrated; execute = moves become plans of the hosts they leave")
    ] = "advise"
    approve: Annotated[
        Literal["operator", "always"], Meta(description="who lets a migration plan run: an operator by the API, or nobody")
    ] = "operator"
    wave_vms: Annotated[int, Meta(ge=1, le=1000, description="VMs of one wave of migrations; the next begins when all are verified")] = 10
    wave_hosts: Annotated[int, Meta(ge=2, le=1000, description="hosts that one wave may touch")] = 8
    wave_racks: Annotated[int, Meta(ge=1, le=1000, description="racks that one wave may touch: domains named rack in the site file")] = 4
    wave_clients: Annotated[int, Meta(ge=1, le=1000, description="clients whose VMs are in one wave")] = 4
    wave_client_permille: Annotated[int, Meta(ge=1, le=1000, description="share of one client's VMs in one wave, but always one VM")] = 250
    per_host: Annotated[int, Meta(ge=1, le=64, description="migrations under way from a host at a time, and to a host")] = 2
    begin_s: Annotated[int, Meta(ge=10, le=3600, description="a move not begun after this long is asked for again")] = 120
    seen_s: Annotated[int, Meta(ge=10, le=3600, description="a VM that moved is seen on its target within this, or that failed")] = 90
    settle_s: Annotated[int, Meta(ge=0, le=3600, description="a VM is watched for this long where it arrived before its move counts")] = 60
    regressions: Annotated[int, Meta(ge=1, le=100, description="moves that fail, or make a VM worse off, until the plan ends")] = 2
    cooldown_s: Annotated[int, Meta(ge=0, le=604_800, description="a VM that has moved stays for this long")] = 3600
    failed_s: Annotated[
        int, Meta(ge=0, le=604_800, description="a VM is not sent again to a host where it failed to go, for this long")
    ] = 21_600
    calm_permille: Annotated[int, Meta(ge=1, le=1000, description="CPU of a host in use up to which it is quiet enough for migrations")] = (
        800
    )
    site: Annotated[
        str, Meta(max_length=4096, description="TOML file of pools, prices, power and rules (placement.md), read at start; empty = none")
    ] = ""
    deadline_s: Annotated[float, Meta(ge=0.1, le=600, description="real seconds that a placement's search may take")] = 10.0
    deviations: Annotated[
        float, Meta(ge=0, le=6, description="standard deviations of the sum of a host's VMs that are kept free on it")
    ] = 1.5
    engine: Annotated[
        Literal["shards", "genetic", "exact", "consolidate", "plain"],
        Meta(description="annealing in shards, a genetic algorithm, CP-SAT with proofs, few and cheap moves, or a plain search"),
    ] = "shards"
    effort: Annotated[float, Meta(ge=0, le=100, description="work of a search against the usual amount; 0 = its first answer")] = 1.0
    receipts: Annotated[int, Meta(ge=0, le=10_000, description="newest placements whose inputs are kept on disk to be solved again")] = 48


class PowerConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How emptied hosts are put to sleep and woken; only where placement.execute = "execute"."""

    switch: Annotated[
        Literal["none", "command", "wake_on_lan", "simulated"], Meta(description="none = hosts are never switched; simulated = for tests")
    ] = "none"
    sleep_command: Annotated[
        tuple[Annotated[str, Meta(max_length=1024)], ...],
        Meta(max_length=64, description="program and arguments, no shell; {host} and {address} are filled in"),
    ] = ()
    wake_command: Annotated[
        tuple[Annotated[str, Meta(max_length=1024)], ...],
        Meta(max_length=64, description="the same to wake a host; not used by wake_on_lan"),
    ] = ()
    addresses: Annotated[
        tuple[Annotated[str, Meta(pattern=HOST_VALUE, max_length=256)], ...],
        Meta(max_length=100_000, description='"HOST_ID=ADDRESS", for {address}'),
    ] = ()
    macs: Annotated[
        tuple[Annotated[str, Meta(pattern=HOST_VALUE, max_length=256)], ...],
        Meta(max_length=100_000, description='"HOST_ID=MAC", for wake_on_lan'),
    ] = ()
    broadcast: Annotated[str, Meta(min_length=1, max_length=64, description="IPv4 address that magic packets are sent to")] = (
        "255.255.255.255"
    )
    timeout_s: Annotated[float, Meta(ge=0.1, le=600, description="a command that has not ended by then is killed and counts as failed")] = (
        30.0
    )
    secret_env: Annotated[str, Meta(max_length=64, description="environment variable that holds the secret, e.g. IPMI_PASSWORD")] = ""
    secret_file: Annotated[str, Meta(max_length=4096, description="file with the secret; read for each call, never logged")] = ""
    spare_hosts: Annotated[int, Meta(ge=0, le=10_000, description="empty hosts that stay awake")] = 1
    empty_s: Annotated[int, Meta(ge=0, le=86_400, description="a host sleeps only after it was seen empty for this long")] = 300
    lead_s: Annotated[int, Meta(ge=1, le=7200, description="from waking a host to its agent's first word, until it was measured")] = 300
    margin_s: Annotated[int, Meta(ge=0, le=7200, description="hosts are woken this much earlier than their lead time asks")] = 120
    repaid_s: Annotated[int, Meta(ge=0, le=86_400, description="a host sleeps only where it will be off for longer than this")] = 900
