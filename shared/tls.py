"""The agents' door: TLS 1.3 with certificates on both sides, by the standard library; the host's identity is in its certificate.

Invariant: who a connection speaks for is read from the verified certificate (SAN URI `urn:tidegate:host:<id>`), never from
what the peer says. The agent checks the coordinator's name; a host's certificate cannot serve as a coordinator's (key usage).
"""

from __future__ import annotations

import ssl
from pathlib import Path
from typing import Final

import msgspec

from shared.config_access import AccessConfig
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


def https_context(config: AccessConfig) -> ssl.SSLContext:
    """For the HTTP door: TLS 1.2 or newer, since browsers and scrapers ask; client certificates where it has their CA. ConfigError."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    _readable(("access.certificate", Path(config.certificate)), ("access.key", Path(config.key)))
    _private(Path(config.key))
    try:
        context.load_cert_chain(config.certificate, config.key)
    except ssl.SSLError as error:
        raise ConfigError(f"access.certificate {config.certificate} with access.key {config.key}: {error.reason or 'not PEM'}") from error
    if config.client_ca:
        _readable(("access.client_ca", Path(config.client_ca)))
        try:
            context.load_verify_locations(cafile=config.client_ca)
        except ssl.SSLError as error:
            raise ConfigError(f"access.client_ca {config.client_ca}: not a PEM certificate ({error.reason or error})") from error
        context.verify_mode = ssl.CERT_REQUIRED if config.client_certificate else ssl.CERT_OPTIONAL
    return context


def peer_name(ssl_object: ssl.SSLObject | None) -> str | None:
    """Common name of the verified client certificate; None = plain HTTP, no certificate, or not exactly one name in it."""
    subject: tuple[tuple[tuple[str, str], ...], ...] = () if ssl_object is None else (ssl_object.getpeercert() or {}).get("subject", ())  # type: ignore[assignment]  # typeshed allows other fields' shapes
    names = [value for part in subject for kind, value in part if kind == "commonName"]
    return names[0] if len(names) == 1 else None


def _load(context: ssl.SSLContext, ca: Path, certificate: Path, key: Path) -> None:
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.verify_mode = ssl.CERT_REQUIRED
    _readable(("CA certificate", ca), ("certificate", certificate), ("private key", key))
    _private(key)
    try:
        context.load_verify_locations(cafile=ca)
    except ssl.SSLError as error:
        raise ConfigError(f"CA certificate {ca}: not a PEM certificate ({error.reason or error})") from error
    try:
        context.load_cert_chain(certificate, key)
    except ssl.SSLError as error:
        raise ConfigError(f"certificate {certificate} with private key {key}: {error.reason or 'not PEM'}") from error


def _readable(*files: tuple[str, Path]) -> None:
    for what, path in files:
        try:
            path.read_bytes()
        except OSError as error:
            raise ConfigError(f"{what} {path}: {error.strerror}") from error


def _private(key: Path) -> None:
    mode = key.stat().st_mode & 0o777
    if mode & 0o007:
        raise ConfigError(f"private key {key}: mode {mode:04o} opens it to every user, allowed is at most 0660")
