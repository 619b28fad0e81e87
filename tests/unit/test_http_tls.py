"""The HTTP door with TLS, over real sockets: who shows which certificate is who, and what is older than TLS 1.2 stays outside."""

from __future__ import annotations

import asyncio
import ssl
import warnings
from pathlib import Path
from typing import Any

import httpx
import pytest
import trustme
from api_client import BEARER, HASH
from cryptography import x509
from fleet_double import FleetDouble

from coordinator.pki import CertificateFiles, create_ca, issue_caller, issue_coordinator, issue_host
from coordinator.service.app import HttpService
from coordinator.service.auth import TokenVerifier
from coordinator.service.safeguards import in_memory
from shared.config_access import AccessConfig
from shared.errors import ConfigError
from shared.tls import https_context

SUBJECTS = ("ops.example=operator", "watch.example=viewer", "aurora.example=client:aurora")
PAUSE = "/api/v1/fleet/pause"


class Authority:
    """One authority and its files."""

    def __init__(self, folder: Path) -> None:
        self.ca = trustme.CA()
        self.folder = folder
        self.pem = folder / "ca.pem"
        self.ca.cert_pem.write_to_path(self.pem)
        self.certificate, self.key = self.issue("server", "127.0.0.1")

    def issue(self, name: str, *names: str, common_name: str | None = None) -> tuple[Path, Path]:
        made = self.ca.issue_cert(*names, common_name=common_name)
        certificate, key = self.folder / f"{name}.pem", self.folder / f"{name}.key"
        certificate.write_bytes(b"".join(blob.bytes() for blob in made.cert_chain_pems))
        made.private_key_pem.write_to_path(key)
        key.chmod(0o600)
        return certificate, key

    def client(self, common_name: str | None) -> ssl.SSLContext:
        """Trusts the authority; shows a certificate of it with this common name, None = shows none."""
        context = ssl.create_default_context(cafile=str(self.pem))
        if common_name is not None:
            context.load_cert_chain(*self.issue(common_name, "client.example", common_name=common_name))
        return context


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    return Authority(tmp_path)


def config(authority: Authority, **changed: Any) -> AccessConfig:
    values = {"certificate": str(authority.certificate), "key": str(authority.key), "client_ca": str(authority.pem), "subjects": SUBJECTS}
    return AccessConfig(**{"open_reads": False, **values, **changed})


async def answers(access: AccessConfig, context: ssl.SSLContext, *asked: tuple[str, str, dict[str, str]]) -> list[httpx.Response]:
    verifier = TokenVerifier({HASH: "ops"})
    service = HttpService(FleetDouble(), verifier, port=0, config=access, safeguards=in_memory(verifier, access))
    await service.start()
    try:
        async with httpx.AsyncClient(base_url=service.url, verify=context, timeout=5) as client:
            return [
                await client.request(method, path, headers=headers, json={"paused": False} if method == "PUT" else None)
                for method, path, headers in asked
            ]
    finally:
        await service.stop()


@pytest.mark.parametrize(
    ("name", "read", "write"),
    [
        ("ops.example", 200, 200),
        ("watch.example", 200, 403),
        ("aurora.example", 403, 403),
        ("stranger.example", 401, 401),
        (None, 401, 401),
    ],
)
def test_a_certificate_is_a_role(authority: Authority, name: str | None, read: int, write: int) -> None:
    found = asyncio.run(answers(config(authority), authority.client(name), ("GET", "/api/v1/fleet", {}), ("PUT", PAUSE, {})))
    assert [answer.status_code for answer in found] == [read, write]


def test_a_clients_certificate_shows_its_vms_alone(authority: Authority) -> None:
    (page,) = asyncio.run(answers(config(authority), authority.client("aurora.example"), ("GET", "/api/v1/vms", {})))
    assert {vm["client"] for vm in page.json()["items"]} == {"aurora"}


def test_a_token_in_the_request_wins_and_a_wrong_one_is_refused(authority: Authority) -> None:
    wrong = {"Authorization": "Bearer tg_wrong"}
    asked = (("PUT", PAUSE, BEARER), ("PUT", PAUSE, wrong))
    found = asyncio.run(answers(config(authority), authority.client("watch.example"), *asked))
    assert [answer.status_code for answer in found] == [200, 401]


def test_the_audit_names_the_certificate(authority: Authority) -> None:
    asked = (("PUT", PAUSE, {}), ("GET", "/api/v1/audit", {}))
    _, rows = asyncio.run(answers(config(authority), authority.client("ops.example"), *asked))
    (row,) = rows.json()["items"]
    assert (row["actor"], row["role"], row["how"]) == ("ops.example", "operator", "certificate:ops.example")


def test_who_shows_none_is_turned_away_where_one_is_needed(authority: Authority) -> None:
    required = config(authority, client_certificate=True)
    with pytest.raises(httpx.HTTPError):
        asyncio.run(answers(required, authority.client(None), ("GET", "/livez", {})))
    (found,) = asyncio.run(answers(required, authority.client("ops.example"), ("GET", "/livez", {})))
    assert found.status_code == 200


def test_a_certificate_of_another_authority_is_turned_away(authority: Authority, tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    context = authority.client(None)
    context.load_cert_chain(*Authority(elsewhere).issue("ops", "x.example", common_name="ops.example"))
    with pytest.raises(httpx.HTTPError):
        asyncio.run(answers(config(authority), context, ("GET", "/api/v1/fleet", {})))


def test_old_tls_and_plain_http_stay_outside(authority: Authority) -> None:
    assert https_context(config(authority)).minimum_version == ssl.TLSVersion.TLSv1_2
    old = authority.client("ops.example")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # that it is old is the point
        old.minimum_version = ssl.TLSVersion.TLSv1
        old.maximum_version = ssl.TLSVersion.TLSv1_1
    old.set_ciphers("ALL:@SECLEVEL=0")
    with pytest.raises(httpx.HTTPError):
        asyncio.run(answers(config(authority), old, ("GET", "/livez", {})))

    async def plain() -> None:
        verifier = TokenVerifier({})
        service = HttpService(FleetDouble(), verifier, port=0, config=config(authority))
        await service.start()
        try:
            async with httpx.AsyncClient(timeout=5) as client:
                with pytest.raises(httpx.HTTPError):
                    await client.get(service.url.replace("https:", "http:") + "livez")
        finally:
            await service.stop()

    asyncio.run(plain())


@pytest.mark.parametrize(
    ("changed", "named"),
    [
        ({"certificate": "/nonexistent.pem"}, "access.certificate"),
        ({"key": "/nonexistent.key"}, "access.key"),
        ({"client_ca": "/nonexistent.pem"}, "access.client_ca"),
    ],
)
def test_a_file_that_is_not_there_is_named(authority: Authority, changed: dict[str, str], named: str) -> None:
    with pytest.raises(ConfigError, match=named):
        https_context(config(authority, **changed))


def test_a_key_that_others_can_read_is_refused(authority: Authority) -> None:
    authority.key.chmod(0o644)
    with pytest.raises(ConfigError, match="mode 0644"):
        https_context(config(authority))


@pytest.mark.parametrize(
    ("values", "named"),
    [
        ({"certificate": "a"}, "key"),
        ({"client_ca": "a"}, "client_ca"),
        ({"client_certificate": True}, "client_certificate"),
        ({"subjects": ("a=viewer",)}, "subjects"),
        ({"certificate": "a", "key": "b", "client_ca": "c", "subjects": ("a=viewer", "a=admin")}, "named twice"),
    ],
)
def test_settings_that_contradict_each_other(values: dict[str, Any], named: str) -> None:
    with pytest.raises(ValueError, match=named):
        AccessConfig(**values)


def test_certificates_of_our_own_authority(tmp_path: Path) -> None:
    """One authority for agents and callers: a host's certificate is nobody at the HTTP door, a caller's is none at the agents'."""
    create_ca(tmp_path)
    server = issue_coordinator(tmp_path, ["localhost"], ["127.0.0.1"])
    access = AccessConfig(
        open_reads=False,
        certificate=str(server.certificate),
        key=str(server.key),
        client_ca=str(server.ca),
        subjects=("caller-ops=operator",),
    )

    def status(files: CertificateFiles) -> int:
        context = ssl.create_default_context(cafile=str(files.ca))
        context.load_cert_chain(files.certificate, files.key)
        (answer,) = asyncio.run(answers(access, context, ("PUT", PAUSE, {})))
        return answer.status_code

    ops = issue_caller(tmp_path, "ops")
    assert status(ops) == 200
    assert status(issue_caller(tmp_path, "other")) == status(issue_host(tmp_path, "ops")) == 401
    names = x509.load_pem_x509_certificate(ops.certificate.read_bytes()).extensions.get_extension_for_class(x509.SubjectAlternativeName)
    assert [name.value for name in names.value] == ["urn:tidegate:caller:ops"]
    for wrong in ("x" * 58, "a/b", ""):
        with pytest.raises(ConfigError, match="caller"):
            issue_caller(tmp_path, wrong)
