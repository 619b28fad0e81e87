"""TLS 1.3 with certificates on both sides, by the standard library; the host's identity is in its certificate.

Invariant: who a connection speaks for is read from the verified certificate (SAN URI `urn:tidegate:host:<id>`), never from
what the peer says. The agent checks the coordinator's name; a host's certificate cannot serve as a coordinator's (key usage).
"""

from __future__ import annotations

import ssl
from pathlib import Path
from typing import Final

import msgspec

from shared.errors import ConfigError, PeerError
from shared.model import Identifier

HOST_URN: Final = "urn:tidegate:host:"


def server_context(ca: Path, certificate: Path, key: Path) -> ssl.SSLContext:
    """For the coordinator: only peers with a certificate of `ca` get in. Raises ConfigError."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    _load(context, ca, certificate, key)
    return context


def client_context(ca: Path, certificate: Path, key: Path) -> ssl.SSLContext:
    """For the agent: shows its own certificate and checks the coordinator's chain and name. Raises ConfigError."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = True
    _load(context, ca, certificate, key)
    return context


def peer_host_id(ssl_object: ssl.SSLObject | ssl.SSLSocket) -> str:
    """Host id of the verified peer certificate. Raises PeerError unless there is exactly one well-formed identity."""
    names: tuple[tuple[str, str], ...] = (ssl_object.getpeercert() or {}).get("subjectAltName", ())  # type: ignore[assignment]  # typeshed allows other fields' shapes
    ids = [value.removeprefix(HOST_URN) for kind, value in names if kind == "URI" and value.startswith(HOST_URN)]
    if len(ids) != 1:
        raise PeerError(f"certificate carries {len(ids)} names {HOST_URN}<id>, expected exactly one")
    try:
        return msgspec.convert(ids[0], Identifier)
    except msgspec.ValidationError as error:
        raise PeerError(f"certificate's host id {ids[0][:140]!r}: {error}") from error


def _load(context: ssl.SSLContext, ca: Path, certificate: Path, key: Path) -> None:
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.verify_mode = ssl.CERT_REQUIRED
    for what, path in (("CA certificate", ca), ("certificate", certificate), ("private key", key)):
        try:
            path.read_bytes()
        except OSError as error:
            raise ConfigError(f"{what} {path}: {error.strerror}") from error
    mode = key.stat().st_mode & 0o777
    if mode & 0o007:
        raise ConfigError(f"private key {key}: mode {mode:04o} opens it to every user, allowed is at most 0660")
    try:
        context.load_verify_locations(cafile=ca)
    except ssl.SSLError as error:
        raise ConfigError(f"CA certificate {ca}: not a PEM certificate ({error.reason or error})") from error
    try:
        context.load_cert_chain(certificate, key)
    except ssl.SSLError as error:
        raise ConfigError(f"certificate {certificate} with private key {key}: {error.reason or 'not PEM'}") from error
