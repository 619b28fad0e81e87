"""Settings of the HTTP door: who gets in, with what certificate, and how often. Part of shared/config.py, which hands them on."""

from __future__ import annotations

from typing import Annotated

import msgspec
from msgspec import Meta

from shared.roles import Role

Subject = Annotated[str, Meta(pattern=r"^[^=]{1,256}=(viewer|operator|admin|client:.{1,256})$")]


class AccessConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The HTTP door. With a certificate it speaks TLS 1.2 or newer; with a client CA, certificates identify callers beside tokens."""

    open_reads: Annotated[
        bool, Meta(description="on loopback, reads need no token (role viewer); false = every read needs one there as well")
    ] = True
    certificate: Annotated[str, Meta(max_length=4096, description="PEM chain of the HTTP door; empty = plain HTTP")] = ""
    key: Annotated[str, Meta(max_length=4096, description="its PEM private key")] = ""
    client_ca: Annotated[
        str, Meta(max_length=4096, description="PEM authorities whose client certificates identify callers; empty = tokens alone")
    ] = ""
    client_certificate: Annotated[bool, Meta(description="turn away who shows no certificate of client_ca, in the TLS handshake")] = False
    subjects: Annotated[
        tuple[Subject, ...],
        Meta(max_length=1000, description='common names and roles: "NAME=viewer", "=operator", "=admin" or "=client:CLIENT"'),
    ] = ()
    requests_per_s: Annotated[
        int, Meta(ge=1, le=1_000_000, description="requests a second, lasting, of one token, certificate or (without) address")
    ] = 500
    writes_per_s: Annotated[int, Meta(ge=1, le=1_000_000, description="writes among them")] = 100
    failures_per_s: Annotated[int, Meta(ge=1, le=1_000_000, description="wrong tokens a second of one address")] = 10
    streams: Annotated[int, Meta(ge=0, le=10_000, description="live streams open at a time, of all callers")] = 64
    streams_per_caller: Annotated[int, Meta(ge=0, le=10_000, description="live streams of one caller")] = 8

    def __post_init__(self) -> None:
        if bool(self.certificate) != bool(self.key):
            raise ValueError("access: certificate and key belong together; one of them is empty")
        if self.client_ca and not self.certificate:
            raise ValueError("access.client_ca: needs access.certificate and access.key")
        if self.client_certificate and not self.client_ca:
            raise ValueError("access.client_certificate: needs access.client_ca")
        if self.subjects and not self.client_ca:
            raise ValueError("access.subjects: needs access.client_ca")
        names = [subject.partition("=")[0] for subject in self.subjects]
        if len(set(names)) < len(names):
            raise ValueError(f"access.subjects: {next(n for n in names if names.count(n) > 1)!r} is named twice")

    def by_subject(self) -> dict[str, tuple[Role, str | None]]:
        """Common name -> role, and the client where the role is `client`."""
        found: dict[str, tuple[Role, str | None]] = {}
        for subject in self.subjects:
            name, _, rest = subject.partition("=")
            role, _, client = rest.partition(":")
            found[name] = (Role(role), client or None)
        return found
