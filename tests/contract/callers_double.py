"""One application over the in-memory fleet with a token of every role, as tests of who may do what ask it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from fleet_double import FleetDouble
from litestar import Litestar
from litestar.testing import TestClient

from coordinator.service.api import create_app
from coordinator.service.auth import TokenVerifier, new_token
from coordinator.service.safeguards import in_memory
from coordinator.store.tokens import Grant, id_of
from shared.config_access import AccessConfig
from shared.roles import Role

OWN, FOREIGN = "aurora", "borealis"
MANY = AccessConfig(requests_per_s=1_000_000, writes_per_s=1_000_000, failures_per_s=1_000_000)
CALLERS: dict[str, tuple[Role, str | None]] = {
    "viewer": (Role.VIEWER, None),
    "client": (Role.CLIENT, OWN),
    "operator": (Role.OPERATOR, None),
    "admin": (Role.ADMIN, None),
}


class Callers:
    """`ask("client", "GET", path)`; None = without a token."""

    def __init__(self, client: TestClient[Litestar], tokens: dict[str, str], fleet: FleetDouble) -> None:
        self.client, self.tokens, self.fleet = client, tokens, fleet

    def ask(self, caller: str | None, method: str, path: str, **more: object):  # type: ignore[no-untyped-def]
        headers = {"Authorization": f"Bearer {self.tokens[caller]}"} if caller else {}
        headers |= more.pop("headers", {})  # type: ignore[arg-type]
        return self.client.request(method, path, headers=headers, **more)  # type: ignore[arg-type]


@contextmanager
def callers(config: AccessConfig = MANY, *, open_reads: bool = False) -> Iterator[Callers]:
    """Tokens are in the application's own store, as a coordinator has them."""
    fleet, plain = FleetDouble(), {}
    verifier = TokenVerifier({}, refresh=lambda: guards.store.grants())  # noqa: PLW0108  # bound below
    guards = in_memory(verifier, config)
    for name, (role, client) in CALLERS.items():
        plain[name], hashed = new_token()
        guards.store.save(hashed, Grant(id=id_of(hashed), name=name, role=role, client=client), guards.wall_ns())
    app = create_app(fleet, verifier, open_reads=open_reads, host_names=(), safeguards=guards)
    with TestClient(app, base_url="http://fleet.example", raise_server_exceptions=False) as client:
        yield Callers(client, plain, fleet)
