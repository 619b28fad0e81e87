"""10,000 hostile requests to the agent's control socket: none is applied, none is unhandled, each is answered with its code.

Every generator below makes requests that must be refused; what a valid request does is tested elsewhere.
"""

from __future__ import annotations

import asyncio
import json
import random
import string
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from plain_host import plain_capacity

from agent.core import AgentCore
from agent.events import Event, InventoryRead, UndoOrdered
from agent.link.spool import Spool
from agent.service.answers import Answers
from agent.service.calls import BoundedCalls
from agent.service.control import MAX_REQUEST_BYTES, ControlServer
from agent.service.picture import Picture
from shared.clock import ManualClock
from shared.config import AgentConfig
from shared.model import Domain, Mode
from shared.refusal import RefusalCode
from shared.units import GIB, MIB, NS_PER_S

REQUESTS = 10_000
READ_ONLY = ("status", "vms", "top", "plan", "history", "why", "caps", "undone", "dirty-rate")
COMMANDS = (*READ_ONLY, "mode", "pause", "resume", "undo")
WITHOUT_ARGUMENT = ("status", "vms", "top", "plan", "history", "pause", "resume")


class Agent:
    """A core with one VM behind a control socket; events that a request causes are kept."""

    def __init__(self, folder: Path) -> None:
        clock = ManualClock(1_800_000_000 * NS_PER_S)
        self.core = AgentCore(host_id="h1", boot_id="b1", capacity=plain_capacity(), default_mode=Mode.REACTIVE)
        vm = Domain(vm_id="vm-1", name="web", vcpus_max=4, memory_max_bytes=4 * GIB)
        self.core.handle(InventoryRead(domains=(vm,)), clock.wall_ns())
        calls = BoundedCalls()
        config = AgentConfig(host_id="h1")
        self.picture = Picture(
            config=config, clock=clock, core=self.core, calls=calls, spool=Spool(folder / "spool", 16 * MIB), domains=(vm,)
        )
        self.events: list[Event] = []
        self.bugs: list[Exception] = []
        self.answers = Answers(self.picture, self.events.append)
        self.server = ControlServer(folder / "s", self.answer)

    async def answer(self, request: Any) -> Any:
        try:
            return await self.answers.answer(request)
        except Exception as error:
            self.bugs.append(error)
            raise

    def close(self) -> None:
        self.picture.calls.close()
        self.picture.spool.close()


def text(rng: random.Random, most: int = 40) -> str:
    alphabet = rng.choice((string.printable, string.ascii_letters, "\x00\x1b\u202e\ud7ff𝟘٣", "0123456789-+.eE", "'\"\\{}[]$`;|&<>/."))
    return "".join(rng.choices(alphabet, k=rng.randint(1, most)))


def garbage(rng: random.Random) -> bytes:
    return bytes(byte for byte in rng.randbytes(rng.randint(1, 300)) if byte != 10) or b"\xff"


def nested(rng: random.Random) -> bytes:
    depth = rng.choice((10, 1000, 20_000))
    opening, closing = rng.choice(((b"[", b"]"), (b'{"command":', b"}")))
    return opening * depth + b"1" + closing * rng.choice((0, depth))


def wrong_shape(rng: random.Random) -> bytes:
    value = rng.choice((None, True, 3, 1e308, float("nan"), [], ["status"], {}, {"command": None}, {"command": 7}, {"command": ["pause"]}))
    extra = {"command": rng.choice(COMMANDS), text(rng): 1, "uid": 0}
    options = {"command": rng.choice(COMMANDS), "options": rng.choice(([], "x", {"n": 5}, {"n": None}, {str(n): "x" for n in range(100)}))}
    return json.dumps(rng.choice((value, extra, options))).encode()


def too_long(rng: random.Random) -> bytes:
    size = rng.choice((1025, 5000, MAX_REQUEST_BYTES + 10))
    return json.dumps({"command": rng.choice(COMMANDS), "argument": "x" * size}).encode()


def unknown_command(rng: random.Random) -> bytes:
    near = rng.choice(COMMANDS)
    words = (near.upper(), near + " ", near + "\u0000", text(rng) + "x", "__class__", "answer", "_undo", "simulation", "../" + near, "")
    return json.dumps({"command": rng.choice(words)}).encode()


def hostile_argument(rng: random.Random) -> bytes:
    word = rng.choice((text(rng) + "\x00", "vm-2", "VM-1", "vm-1 ", "../vm-1", "-1", "1e9", "٣", "9" * 30, "", "nan"))
    command = rng.choice(("mode", "why", "caps", "undo", "undone", *WITHOUT_ARGUMENT))
    return json.dumps({"command": command, "argument": word}).encode()


def hostile_options(rng: random.Random) -> bytes:
    word = rng.choice((text(rng) + "x", "-1", "0", "1001", "9" * 25, "1e3", " 5", "٣", "", "nan", "vm-2", "604801"))
    command, name = rng.choice(
        (("history", "n"), ("history", "vm"), ("undo", "since_s"), ("undo", "vm"), ("undo", "dry_run"), ("pause", "vm"))
    )
    options = {name: word}
    if command == "undo" and name != "since_s" and rng.random() < 0.8:
        options["since_s"] = "600"
    if (command, name, word) == ("history", "n", "604801"):
        options["n"] = "0"
    return json.dumps({"command": command, "options": options}).encode()


def mutated(rng: random.Random) -> bytes:
    """A valid request with a byte that makes it none: cut short, or with a control character inside a string."""
    whole = json.dumps({"command": rng.choice(COMMANDS), "argument": text(rng)}).encode()
    if rng.random() < 0.5:
        return whole[: rng.randint(1, len(whole) - 1)]
    at = whole.index(b": ") + 3
    return whole[:at] + bytes([rng.randint(0, 8)]) + whole[at:]


GENERATORS: tuple[Callable[[random.Random], bytes], ...] = (
    garbage, nested, wrong_shape, too_long, unknown_command, hostile_argument, hostile_options, mutated,
)  # fmt: skip


async def send(path: Path, request: bytes) -> dict[str, Any]:
    reader, writer = await asyncio.open_unix_connection(str(path), limit=1 << 20)
    writer.write(request + b"\n")
    try:
        answer: dict[str, Any] = json.loads(await asyncio.wait_for(reader.readline(), 20))
    finally:
        writer.close()
    return answer


def test_ten_thousand_hostile_requests(tmp_path: Path) -> None:
    async def scenario() -> None:
        agent = Agent(tmp_path)
        await agent.server.start()
        try:
            for number in range(REQUESTS):
                rng = random.Random(number)
                request = rng.choice(GENERATORS)(rng)
                reply = await send(tmp_path / "s", request)
                assert reply["ok"] is False, (number, request[:200], reply)
                assert reply["code"] in set(RefusalCode) and reply["error"], (number, request[:200], reply)
                assert len(reply["error"]) < 2000, (number, request[:200])
            assert agent.events == [], "a hostile request was applied"
            assert [bug for bug in agent.bugs if not isinstance(bug, Exception) or type(bug).__name__ != "Refusal"] == []
            assert (await send(tmp_path / "s", b'{"command":"status"}'))["ok"]
        finally:
            await agent.server.stop()
            agent.close()

    asyncio.run(scenario())


@pytest.mark.parametrize("command", [*READ_ONLY[:5], "pause", "resume"])
def test_valid_requests_pass_the_same_door(tmp_path: Path, command: str) -> None:
    """The generators must not be refused for a reason of the harness."""

    async def scenario() -> None:
        agent = Agent(tmp_path)
        await agent.server.start()
        try:
            assert (await send(tmp_path / "s", json.dumps({"command": command}).encode()))["ok"]
            assert len(agent.events) == (command in ("pause", "resume"))
            refused = await send(tmp_path / "s", b'{"command":"undo","options":{"since_s":"600"}}')
            assert refused["code"] == "nothing_to_undo"
            assert not any(isinstance(event, UndoOrdered) for event in agent.events)
        finally:
            await agent.server.stop()
            agent.close()

    asyncio.run(scenario())
