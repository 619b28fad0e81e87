"""Certificates and TLS contexts: identities, usages, file modes, and errors that name the file."""

import ssl
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.x509.oid import ExtendedKeyUsageOID

from coordinator.pki import create_ca, issue_coordinator, issue_host
from shared.errors import ConfigError, PeerError
from shared.tls import client_context, peer_host_id, server_context


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("pki")
    create_ca(path)
    issue_coordinator(path, ["gate.example"], ["127.0.0.1"])
    issue_host(path, "h1")
    return path


def handshake(server: ssl.SSLContext, client: ssl.SSLContext, name: str) -> tuple[ssl.SSLObject, ssl.SSLObject]:
    """Both ends after a handshake through memory."""
    to_server, to_client = ssl.MemoryBIO(), ssl.MemoryBIO()
    client_end = client.wrap_bio(to_client, to_server, server_hostname=name)
    server_end = server.wrap_bio(to_server, to_client, server_side=True)
    waiting = [client_end, server_end]
    while waiting:
        for end in list(waiting):
            try:
                end.do_handshake()
            except ssl.SSLWantReadError:
                continue
            waiting.remove(end)
    return server_end, client_end


def test_the_certificate_carries_the_hosts_identity(folder: Path) -> None:
    server = server_context(folder / "ca.pem", folder / "coordinator.pem", folder / "coordinator.key")
    client = client_context(folder / "ca.pem", folder / "host-h1.pem", folder / "host-h1.key")
    for name in ("gate.example", "127.0.0.1"):
        server_end, client_end = handshake(server, client, name)
        assert peer_host_id(server_end) == "h1"
        assert client_end.version() == "TLSv1.3"
        with pytest.raises(PeerError, match="0 names"):
            peer_host_id(client_end)


def test_the_coordinators_name_is_checked(folder: Path) -> None:
    server = server_context(folder / "ca.pem", folder / "coordinator.pem", folder / "coordinator.key")
    client = client_context(folder / "ca.pem", folder / "host-h1.pem", folder / "host-h1.key")
    with pytest.raises(ssl.SSLCertVerificationError, match="Hostname mismatch"):
        handshake(server, client, "other.example")


def test_a_host_cannot_pose_as_the_coordinator(folder: Path) -> None:
    server = server_context(folder / "ca.pem", folder / "host-h1.pem", folder / "host-h1.key")
    client = client_context(folder / "ca.pem", folder / "host-h1.pem", folder / "host-h1.key")
    with pytest.raises(ssl.SSLCertVerificationError, match=r"purpose|usage"):
        handshake(server, client, "h1")


def test_a_host_of_another_ca_is_refused(folder: Path, tmp_path: Path) -> None:
    create_ca(tmp_path)
    issue_host(tmp_path, "h1")
    server = server_context(folder / "ca.pem", folder / "coordinator.pem", folder / "coordinator.key")
    client = client_context(folder / "ca.pem", tmp_path / "host-h1.pem", tmp_path / "host-h1.key")
    with pytest.raises(ssl.SSLError, match=r"CERTIFICATE_VERIFY_FAILED|certificate verify failed"):
        handshake(server, client, "gate.example")


def test_files_are_private_and_usages_disjoint(folder: Path) -> None:
    assert {path.stat().st_mode & 0o777 for path in folder.iterdir()} == {0o600}
    usages = {}
    for name in ("coordinator", "host-h1"):
        certificate = x509.load_pem_x509_certificate((folder / f"{name}.pem").read_bytes())
        usages[name] = list(certificate.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value)
        assert certificate.not_valid_before_utc < datetime.now(UTC) < certificate.not_valid_after_utc
    assert usages == {"coordinator": [ExtendedKeyUsageOID.SERVER_AUTH], "host-h1": [ExtendedKeyUsageOID.CLIENT_AUTH]}


def test_validity_is_as_asked(folder: Path) -> None:
    files = issue_host(folder, "short", valid_days=1)
    certificate = x509.load_pem_x509_certificate(files.certificate.read_bytes())
    assert certificate.not_valid_after_utc - certificate.not_valid_before_utc == timedelta(days=1, hours=1)


@pytest.mark.parametrize("valid_days", [0, -1, 3651])
def test_impossible_validity(folder: Path, valid_days: int) -> None:
    with pytest.raises(ConfigError, match=f"valid_days {valid_days}: allowed 1 to 3650"):
        issue_host(folder, "h9", valid_days=valid_days)


@pytest.mark.parametrize("host_id", ["", "../etc", "a b", "h" * 129, "ä"])
def test_impossible_host_ids(folder: Path, host_id: str) -> None:
    with pytest.raises(ConfigError, match="host id"):
        issue_host(folder, host_id)


def test_impossible_coordinator_names(folder: Path) -> None:
    with pytest.raises(ConfigError, match="at least one"):
        issue_coordinator(folder, [])
    with pytest.raises(ConfigError, match="999"):
        issue_coordinator(folder, ["gate"], ["999.0.0.1"])


def test_a_second_ca_is_refused_and_a_missing_one_named(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"ca\.pem: exists"):
        create_ca(folder)
    with pytest.raises(ConfigError, match=r"ca\.pem: No such file"):
        issue_host(tmp_path, "h1")


def test_contexts_name_the_file_and_what_is_wrong(folder: Path, tmp_path: Path) -> None:
    ca, certificate, key = folder / "ca.pem", folder / "host-h1.pem", folder / "host-h1.key"
    junk = tmp_path / "junk.pem"
    junk.write_text("not a certificate")
    junk.chmod(0o600)
    with pytest.raises(ConfigError, match=r"CA certificate .*absent\.pem: No such file"):
        client_context(tmp_path / "absent.pem", certificate, key)
    with pytest.raises(ConfigError, match=r"CA certificate .*junk\.pem: not a PEM"):
        client_context(junk, certificate, key)
    with pytest.raises(ConfigError, match=r"certificate .*junk\.pem with private key"):
        client_context(ca, junk, key)
    with pytest.raises(ConfigError, match=r"KEY_VALUES_MISMATCH|mismatch"):
        server_context(ca, certificate, folder / "coordinator.key")
    open_key = tmp_path / "open.key"
    open_key.write_bytes(key.read_bytes())
    open_key.chmod(0o644)
    with pytest.raises(ConfigError, match=r"open\.key: mode 0644 opens it to every user"):
        client_context(ca, certificate, open_key)
