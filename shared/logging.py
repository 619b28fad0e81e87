"""Log lines: native fields of the journal under systemd; else on stderr, one JSON object per line, or coloured text on a terminal.

Invariant: no value whose key names a secret leaves the process, at any depth. Lines of libraries (standard logging) take the same way,
from severity warning up. Log times are the machine's real time even where decisions run on a simulated clock.
"""

from __future__ import annotations

import functools
import logging
import os
import sys
from collections.abc import Callable, Mapping
from typing import Any, Final, TextIO

import msgspec
import structlog
from structlog.typing import EventDict, Processor, WrappedLogger

from shared.journald import JournalSender, is_journal

LEVELS: Final = {"debug": logging.DEBUG, "info": logging.INFO, "warning": logging.WARNING, "error": logging.ERROR}
_STDERR: Final = 2
REDACTED: Final = "[redacted]"
_SECRET_WORDS: Final = ("token", "password", "secret", "authorization", "private_key", "cookie")


def configure(level: str, stream: TextIO | None = None, program: str = "tidegate") -> None:
    """Set up logging for this process at its start, and again when the level changes. `level`: a key of LEVELS; `stream`: stderr unless
    given; `program`: what the journal calls us."""
    out = stream if stream is not None else sys.stderr
    shared: list[Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        redact,
    ]
    last: list[Processor]
    if stream is None and is_journal(_STDERR, os.environ):
        last = [structlog.processors.dict_tracebacks, _journalled(_sender(program).send)]
    elif out.isatty():
        last = [structlog.dev.ConsoleRenderer()]
    else:
        last = [structlog.processors.dict_tracebacks, structlog.processors.JSONRenderer(serializer=_one_line)]
    structlog.configure(
        processors=[*shared, *last],
        wrapper_class=structlog.make_filtering_bound_logger(LEVELS[level]),
        logger_factory=structlog.WriteLoggerFactory(out),
        cache_logger_on_first_use=False,  # a logger made at import must follow a later configure
    )
    handler = _LineHandler(out)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=[structlog.stdlib.add_logger_name, structlog.stdlib.ExtraAdder(), *shared],
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, *last],
        )
    )
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(max(logging.WARNING, LEVELS[level]))


class _LineHandler(logging.StreamHandler[TextIO]):
    """A library's line that the journal has taken is empty here."""

    def emit(self, record: logging.LogRecord) -> None:
        if line := self.format(record):
            self.stream.write(f"{line}\n")
            self.stream.flush()


@functools.cache
def _sender(program: str) -> JournalSender:
    """One socket for the life of the process, however often the level changes."""
    return JournalSender(program)


def _journalled(send: Callable[[Mapping[str, Any]], bool]) -> Processor:
    """The last step under systemd: what the journal does not take goes to stderr, which is the journal's stream as well."""

    def last(_logger: WrappedLogger | None, _method: str, event: EventDict) -> str:
        if send(event):
            if isinstance(_logger, structlog.WriteLogger):
                raise structlog.DropEvent
            return ""
        return _one_line(event)

    return last


def redact(_logger: WrappedLogger | None, _method: str, event: EventDict) -> EventDict:
    """Replace the values of keys that name a secret, in nested mappings too (a structlog processor)."""
    return {key: _clean(key, value) for key, value in event.items()}


def _clean(key: str, value: Any) -> Any:
    if any(word in key.lower() for word in _SECRET_WORDS):
        return REDACTED
    if isinstance(value, Mapping):
        return {inner: _clean(str(inner), item) for inner, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_clean("", item) for item in value]
    return value


def _one_line(event: EventDict, **_: object) -> str:
    return msgspec.json.encode(event, enc_hook=repr).decode()
