"""A blocking call that is waited for only so long."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Generic, TypeVar

from shared.errors import HostError

_T = TypeVar("_T")


class Deadline(Generic[_T]):
    """Runs a blocking call in a thread and stops waiting for it after a while; never more than `most` such threads at a time.

    `start` lets the call run ahead, and the next `call` takes its value. For use by one thread at a time.
    """

    def __init__(self, name: str, blocking: Callable[[], _T], most: int) -> None:
        self._name = name
        self._blocking = blocking
        self._most = most
        self._hanging: list[_Call[_T]] = []
        self._ahead: _Call[_T] | None = None

    def start(self) -> bool:
        """Begin a call for the next `call` to take; False when one waits to be taken already, or too many earlier ones still hang."""
        self._hanging = [call for call in self._hanging if call.thread.is_alive()]
        if self._ahead is not None or len(self._hanging) >= self._most:
            return False
        self._ahead = _Call(self._name, self._blocking)
        return True

    def call(self, seconds: float) -> _T:
        """The call's value. Raises its error, or a HostError of our own when it is late or too many earlier ones still hang."""
        self.start()
        call, self._ahead = self._ahead, None
        if call is None:
            raise HostError(f"{self._name}: {self._most} earlier calls have not returned yet")
        call.thread.join(seconds)
        if call.errors:
            raise call.errors[0]
        if not call.values:
            self._hanging.append(call)
            raise HostError(f"{self._name}: no answer within {seconds} s")
        return call.values[0]


class _Call(Generic[_T]):
    def __init__(self, name: str, blocking: Callable[[], _T]) -> None:
        self.values: list[_T] = []
        self.errors: list[BaseException] = []
        self._blocking = blocking
        self.thread = threading.Thread(target=self._work, name=f"tidegate {name}", daemon=True)
        self.thread.start()

    def _work(self) -> None:
        try:
            self.values.append(self._blocking())
        except BaseException as error:  # noqa: BLE001  # handed to the caller, who raises it
            self.errors.append(error)
