"""A blocking call that is waited for only so long."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Generic, TypeVar

from shared.errors import HostError

_T = TypeVar("_T")


class Deadline(Generic[_T]):
    """Runs a blocking call in a thread and stops waiting for it after a while; never more than `most` such threads at a time."""

    def __init__(self, name: str, blocking: Callable[[], _T], most: int) -> None:
        self._name = name
        self._blocking = blocking
        self._most = most
        self._hanging: list[threading.Thread] = []

    def call(self, seconds: float) -> _T:
        """The call's value. Raises its error, or a HostError of our own when it is late or too many earlier ones still hang."""
        self._hanging = [thread for thread in self._hanging if thread.is_alive()]
        if len(self._hanging) >= self._most:
            raise HostError(f"{self._name}: {self._most} earlier calls have not returned yet")
        values: list[_T] = []
        errors: list[BaseException] = []

        def work() -> None:
            try:
                values.append(self._blocking())
            except BaseException as error:  # noqa: BLE001  # handed to the caller, who raises it
                errors.append(error)

        thread = threading.Thread(target=work, name=f"tidegate {self._name}", daemon=True)
        thread.start()
        thread.join(seconds)
        if errors:
            raise errors[0]
        if not values:
            self._hanging.append(thread)
            raise HostError(f"{self._name}: no answer within {seconds} s")
        return values[0]
