"""What POSTs with an Idempotency-Key were answered, for a day. Source: draft-ietf-httpapi-idempotency-key-header-07.

A key is claimed on disk before the request is carried out, so one that a crash cut short is known after the restart: it is refused,
because nobody knows how far it came. Invariant: at most one request of a key is ever carried out.
"""

from __future__ import annotations

from typing import Final

import msgspec
from sqlalchemy import Engine, delete, func, select, update
from sqlalchemy.exc import IntegrityError, SQLAlchemyError

from coordinator.store.access_tables import answers
from coordinator.store.transactions import transaction
from shared.errors import HostError, Refusal
from shared.refusal import RefusalCode

KEPT_NS: Final = 86_400 * 10**9
MAX_KEYS: Final = 10_000  # of one caller within KEPT_NS
MAX_BODY_CHARS: Final = 1 << 20  # of an answer; the largest of a POST has some 64 KiB


class KeptAnswer(msgspec.Struct, frozen=True, kw_only=True):
    """An answer as it was given."""

    status: int
    location: str | None
    media_type: str
    body: str


class Answers:
    """Over the registry's engine. `process` tells this start of the coordinator from those before."""

    def __init__(self, engine: Engine, process: str) -> None:
        self._engine = engine
        self._process = process

    def claim(self, actor: str, key: str, digest: str, now_ns: int) -> KeptAnswer | None:
        """The kept answer, or None: the key is the caller's now and must be settled or released. Raises Refusal."""
        mine = (answers.c.actor == actor) & (answers.c.key == key)
        with transaction(self._engine) as connection:
            connection.execute(delete(answers).where(answers.c.created_ns < now_ns - KEPT_NS))
            found = connection.execute(select(answers).where(mine)).mappings().first()
            count = connection.execute(select(func.count()).select_from(answers).where(answers.c.actor == actor)).scalar() or 0
        if found is None:
            if count >= MAX_KEYS:
                raise Refusal(RefusalCode.RATE_LIMITED, f"{MAX_KEYS} keys a day are kept for one caller")
            self._take(actor, key, digest, now_ns)
            return None
        if found["digest"] != digest:
            raise Refusal(RefusalCode.KEY_REUSED, f"Idempotency-Key {key!r} was used for another request")
        if found["status"] is None:
            after = (
                "is under way" if found["process"] == self._process else "was cut short by a restart: look at what it did, use a new key"
            )
            raise Refusal(RefusalCode.KEY_IN_USE, f"the request with Idempotency-Key {key!r} {after}")
        return KeptAnswer(status=found["status"], location=found["location"], media_type=found["media_type"], body=found["body"])

    def settle(self, actor: str, key: str, answer: KeptAnswer) -> None:
        """Keep the answer of a claimed key."""
        if len(answer.body) > MAX_BODY_CHARS:
            raise HostError(f"an answer of {len(answer.body)} characters cannot be kept")
        values = msgspec.structs.asdict(answer)
        with transaction(self._engine) as connection:
            connection.execute(update(answers).where(answers.c.actor == actor, answers.c.key == key).values(**values))

    def release(self, actor: str, key: str) -> None:
        """Forget a claim: nothing was carried out."""
        with transaction(self._engine) as connection:
            connection.execute(delete(answers).where(answers.c.actor == actor, answers.c.key == key, answers.c.status.is_(None)))

    def _take(self, actor: str, key: str, digest: str, now_ns: int) -> None:
        try:
            with self._engine.begin() as connection:
                connection.execute(answers.insert().values(actor=actor, key=key, digest=digest, process=self._process, created_ns=now_ns))
        except IntegrityError:  # another coordinator on the same database was quicker
            raise Refusal(RefusalCode.KEY_IN_USE, f"the request with Idempotency-Key {key!r} is under way") from None
        except SQLAlchemyError as error:
            raise HostError(f"registry: {error}") from error
