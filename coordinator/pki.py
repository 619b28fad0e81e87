"""A small certificate authority for the fleet: one CA, one certificate for the coordinator, one for each host.

Keys are ECDSA P-256; every file is written whole or not at all, with mode 0600. A host's identity is the SAN URI
`urn:tidegate:host:<id>`. Invariant: key usages are disjoint, so no host can pose as the coordinator. Source: RFC 5280.
"""

from __future__ import annotations

import ipaddress
import os
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Final

import msgspec
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from shared.errors import ConfigError
from shared.model import Identifier
from shared.tls import HOST_URN

CA_DAYS: Final = 3650
LEAF_DAYS: Final = 825  # what common TLS stacks accept at most
CALLER_URN: Final = "urn:tidegate:caller:"
MAX_CALLER_CHARS: Final = 57  # with `caller-` the 64 of X.520's common name
CLOCK_SKEW: Final = timedelta(hours=1)  # a host whose clock is a little behind must accept a certificate made just now


@dataclass(frozen=True, kw_only=True)
class CertificateFiles:
    """Where a certificate, its key and the CA that signed it lie."""

    ca: Path
    certificate: Path
    key: Path


def create_ca(folder: Path, *, name: str = "Tidegate CA", valid_days: int = CA_DAYS) -> CertificateFiles:
    """New CA in `folder` (ca.pem, ca.key). Raises ConfigError when there is one already."""
    files = CertificateFiles(ca=folder / "ca.pem", certificate=folder / "ca.pem", key=folder / "ca.key")
    for path in (files.certificate, files.key):
        if path.exists():
            raise ConfigError(f"{path}: exists; a new CA would cut off every agent that trusts the present one")
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    key = ec.generate_private_key(ec.SECP256R1())
    subject = _name(name)
    usage = _key_usage(ca=True)
    builder = (
        _builder(subject, subject, key, key.public_key(), valid_days)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(usage, critical=True)
    )
    _write(files, key, builder.sign(key, hashes.SHA256()))
    return files


def issue_coordinator(folder: Path, names: Sequence[str], ips: Sequence[str] = (), *, valid_days: int = LEAF_DAYS) -> CertificateFiles:
    """Certificate for the agents' door, good for these DNS names and addresses (coordinator.pem, coordinator.key)."""
    if not names and not ips:
        raise ConfigError("coordinator certificate: give at least one DNS name or address that agents connect to")
    try:
        alternatives: list[x509.GeneralName] = [x509.DNSName(name) for name in names]
        alternatives += [x509.IPAddress(ipaddress.ip_address(ip)) for ip in ips]
    except ValueError as error:
        raise ConfigError(f"coordinator certificate: {error}") from error
    return _issue(folder, "coordinator", alternatives, ExtendedKeyUsageOID.SERVER_AUTH, valid_days)


def issue_host(folder: Path, host_id: str, *, valid_days: int = LEAF_DAYS) -> CertificateFiles:
    """Certificate for one host's agent (host-<id>.pem, host-<id>.key). Issuing again replaces the files."""
    try:
        msgspec.convert(host_id, Identifier)
    except msgspec.ValidationError as error:
        raise ConfigError(f"host id {host_id!r}: {error}") from error
    alternatives: list[x509.GeneralName] = [x509.UniformResourceIdentifier(HOST_URN + host_id)]
    return _issue(folder, f"host-{host_id}", alternatives, ExtendedKeyUsageOID.CLIENT_AUTH, valid_days)


def issue_caller(folder: Path, name: str, *, valid_days: int = LEAF_DAYS) -> CertificateFiles:
    """Certificate for a caller of the HTTP door (caller-<name>.pem, caller-<name>.key), its common name `caller-<name>`.

    No host's certificate has such a name, and the agents' door takes none without a host's identity.
    """
    try:
        msgspec.convert(name, Identifier)
    except msgspec.ValidationError as error:
        raise ConfigError(f"caller {name!r}: {error}") from error
    if len(name) > MAX_CALLER_CHARS:
        raise ConfigError(f"caller {name!r}: {len(name)} characters, allowed are {MAX_CALLER_CHARS}")
    alternatives: list[x509.GeneralName] = [x509.UniformResourceIdentifier(CALLER_URN + name)]
    return _issue(folder, f"caller-{name}", alternatives, ExtendedKeyUsageOID.CLIENT_AUTH, valid_days)


def _issue(
    folder: Path, stem: str, alternatives: Sequence[x509.GeneralName], purpose: x509.ObjectIdentifier, valid_days: int
) -> CertificateFiles:
    files = CertificateFiles(ca=folder / "ca.pem", certificate=folder / f"{stem}.pem", key=folder / f"{stem}.key")
    authority, authority_key = _load_ca(folder)
    key = ec.generate_private_key(ec.SECP256R1())
    # 64 is X.520's limit for a common name; identity is in the SAN, this one is for people
    builder = _builder(_name(stem[:64]), authority.subject, authority_key, key.public_key(), valid_days)
    builder = (
        builder.add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_key_usage(ca=False), critical=True)
        .add_extension(x509.ExtendedKeyUsage([purpose]), critical=False)
        .add_extension(x509.SubjectAlternativeName(alternatives), critical=False)
    )
    _write(files, key, builder.sign(authority_key, hashes.SHA256()))
    return files


def _builder(
    subject: x509.Name, issuer: x509.Name, issuer_key: ec.EllipticCurvePrivateKey, key: ec.EllipticCurvePublicKey, valid_days: int
) -> x509.CertificateBuilder:
    if not 1 <= valid_days <= CA_DAYS:
        raise ConfigError(f"valid_days {valid_days}: allowed 1 to {CA_DAYS}")
    now = datetime.now(UTC)
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - CLOCK_SKEW)
        .not_valid_after(now + timedelta(days=valid_days))
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(issuer_key.public_key()), critical=False)
    )


def _load_ca(folder: Path) -> tuple[x509.Certificate, ec.EllipticCurvePrivateKey]:
    try:
        certificate = x509.load_pem_x509_certificate((folder / "ca.pem").read_bytes())
        key = serialization.load_pem_private_key((folder / "ca.key").read_bytes(), password=None)
    except OSError as error:
        raise ConfigError(f"{error.filename}: {error.strerror}; create the CA first") from error
    except ValueError as error:
        raise ConfigError(f"CA in {folder}: not PEM ({error})") from error
    if not isinstance(key, ec.EllipticCurvePrivateKey):
        raise ConfigError(f"{folder / 'ca.key'}: not an elliptic-curve key")
    return certificate, key


def _name(common_name: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common_name)])


def _key_usage(*, ca: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not ca,
        key_cert_sign=ca,
        crl_sign=ca,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )


def _write(files: CertificateFiles, key: ec.EllipticCurvePrivateKey, certificate: x509.Certificate) -> None:
    pem = serialization.Encoding.PEM
    _write_private(files.key, key.private_bytes(pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()))
    _write_private(files.certificate, certificate.public_bytes(pem))


def _write_private(path: Path, content: bytes) -> None:
    scratch = path.with_name(path.name + ".new")
    scratch.unlink(missing_ok=True)  # of a run that was killed: O_EXCL below would stumble over it
    descriptor = os.open(scratch, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    scratch.replace(path)
