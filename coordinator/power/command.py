"""Hosts switched by programs of the operator: ipmitool, virsh, a script. No shell: the template's words are the program's arguments.

`{host}` and `{address}` are filled in, in each word by itself, so no host's name can become another argument. A secret never stands in the
arguments (any user of the machine reads those): it is read from its file anew for each call, given in the environment, e.g. as
IPMI_PASSWORD for `ipmitool -E`, and cut out of whatever the program prints before that is told to anybody. The environment holds nothing
else of the coordinator's.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import string
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final, Self

from shared.config import PowerConfig, by_host
from shared.errors import ConfigError, HostError

FIELDS: Final = frozenset({"host", "address"})
OUTPUT_BYTES: Final = 4096
TOLD: Final = 400  # characters of a program's words in an error
INHERITED: Final = ("PATH", "HOME", "LANG")


class CommandSwitch:
    """Runs one program per order, one at a time for each host. Raises ConfigError for a template that cannot be filled in."""

    def __init__(  # noqa: PLR0917  # as in the settings
        self,
        sleep: Sequence[str],
        wake: Sequence[str],
        addresses: Mapping[str, str],
        timeout_s: float = 30.0,
        secret_env: str = "",
        secret_file: str = "",
    ) -> None:
        self._commands = {False: tuple(sleep), True: tuple(wake)}
        for name, words in (("sleep_command", sleep), ("wake_command", wake)):
            check_template(f"power.{name}", words)
        if bool(secret_env) != bool(secret_file):
            raise ConfigError("power.secret_env and power.secret_file: both or none")
        self._addresses = dict(addresses)
        self._timeout_s = timeout_s
        self._secret_env, self._secret_file = secret_env, secret_file

    @classmethod
    def of(cls, config: PowerConfig) -> Self:
        """As the settings say."""
        return cls(
            config.sleep_command,
            config.wake_command,
            by_host("power.addresses", config.addresses),
            config.timeout_s,
            config.secret_env,
            config.secret_file,
        )

    def cannot(self, host_id: str) -> str | None:
        """None where both commands are set and the host has an address (where they need one)."""
        for wake, name in ((False, "power.sleep_command"), (True, "power.wake_command")):
            if not self._commands[wake]:
                return f"{name} is not set"
            if self._needs_address(wake) and host_id not in self._addresses:
                return f"{host_id} is not among power.addresses"
        return None

    async def sleep(self, host_id: str) -> None:
        """As PowerSwitch.sleep."""
        await self._run(host_id, wake=False)

    async def wake(self, host_id: str) -> None:
        """As PowerSwitch.wake."""
        await self._run(host_id, wake=True)

    def _needs_address(self, wake: bool) -> bool:
        return any("{address}" in word for word in self._commands[wake])

    async def _run(self, host_id: str, *, wake: bool) -> None:
        words = self._commands[wake]
        if not words:
            raise HostError(f"power of {host_id}: no command to {'wake' if wake else 'put to sleep'}")
        if self._needs_address(wake) and host_id not in self._addresses:
            raise HostError(f"power of {host_id}: not among power.addresses")
        argv = [word.format(host=host_id, address=self._addresses.get(host_id, "")) for word in words]
        environment = {name: os.environ[name] for name in INHERITED if name in os.environ}
        secret = await self._secret(host_id)
        if secret:
            environment[self._secret_env] = secret
        try:
            process = await asyncio.create_subprocess_exec(
                *argv, stdin=asyncio.subprocess.DEVNULL, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT, env=environment
            )
        except OSError as error:
            raise HostError(f"power of {host_id}: {argv[0]}: {error.strerror}") from error
        try:
            said = await asyncio.wait_for(self._ended(process), self._timeout_s)
        except TimeoutError:
            raise HostError(f"power of {host_id}: {argv[0]} did not end within {self._timeout_s:g} s") from None
        finally:
            if process.returncode is None:
                with contextlib.suppress(ProcessLookupError):
                    process.kill()
                await process.wait()
        if process.returncode:
            text = said.decode(errors="replace").strip()
            shown = (text.replace(secret, "***") if secret else text)[:TOLD]
            raise HostError(f"power of {host_id}: {argv[0]} ended with {process.returncode}: {shown}")

    async def _ended(self, process: asyncio.subprocess.Process) -> bytes:
        """The beginning of what it printed; the rest is read and forgotten, or a full pipe would hold it up."""
        assert process.stdout is not None
        said = b""
        while chunk := await process.stdout.read(OUTPUT_BYTES):
            said = (said + chunk)[:OUTPUT_BYTES]
        await process.wait()
        return said

    async def _secret(self, host_id: str) -> str:
        if not self._secret_file:
            return ""
        try:
            text = await asyncio.to_thread(Path(self._secret_file).read_text)
        except (OSError, UnicodeDecodeError) as error:
            raise HostError(f"power of {host_id}: power.secret_file cannot be read: {type(error).__name__}") from None
        return text.strip()


def check_template(name: str, words: Sequence[str]) -> None:
    """Raise ConfigError for a template with a field that there is not."""
    for word in words:
        try:
            found = {field for _, field, _, _ in string.Formatter().parse(word) if field is not None}
        except ValueError as error:
            raise ConfigError(f"{name}: {word!r}: {error}") from error
        if found - FIELDS:
            raise ConfigError(f"{name}: {word!r}: {{{min(found - FIELDS)}}} is not known; allowed are {{host}} and {{address}}")
    if words and words[0].startswith("{"):
        raise ConfigError(f"{name}: the program itself may not depend on the host: {words[0]!r}")
