"""10,000 mutated configurations, as TOML and environment: a valid config or a ConfigError that names the setting, nothing else."""

from __future__ import annotations

import random
import string
from pathlib import Path

import msgspec
import pytest

from shared.config import AGENT_PREFIX, COORDINATOR_PREFIX, AgentConfig, CoordinatorConfig, load
from shared.config_file import environment_name, settings
from shared.errors import ConfigError
from shared.model import Mode

INPUTS = 10_000
SIDES = ((AgentConfig, AGENT_PREFIX), (CoordinatorConfig, COORDINATOR_PREFIX))
VALUES = (
    "0", "1", "-1", "5", "100", "9223372036854775807", "1" + "0" * 400, "1" + "0" * 5000, "1e308", "1e999", "-0.0", "nan", "inf", "-inf",
    "true", "false", '""', '"x"', '"observe"', '"\\u0000"', '"../../etc/shadow"', '"' + "x" * 5000 + '"', "[]", "[1]", '["wss://x:1"]',
    '["ws://x"]', "[[[[1]]]]", "[" * 5000, "{}", "{a = 1}", "2026-11-21", "2026-11-21T00:00:00Z", "0x7f", "0b1", "0o7", "'''\n'''",
    "[nan]",
)  # fmt: skip
WORDS = tuple(value.strip('"') for value in VALUES)


KEYS = {kind: [row.key for row in settings(kind)] for kind, _ in SIDES}


def toml(rng: random.Random, keys: list[str]) -> str:
    lines = []
    for _ in range(rng.randint(1, 3)):
        key = rng.choice(keys)
        if rng.random() < 0.2:
            key = mutate(rng, key)
        lines.append(f"{key} = {rng.choice(('5', '100', '1000') if rng.random() < 0.5 else VALUES)}")
    text = "\n".join(lines) + "\n"
    return mutate(rng, text) if rng.random() < 0.3 else text


def mutate(rng: random.Random, text: str) -> str:
    at = rng.randrange(len(text))
    kind = rng.randrange(4)
    if kind == 0:
        return text[:at] + text[at + 1 :]
    if kind == 1:
        return text[:at] + rng.choice(string.printable + "\x00é𝟘\u202e") + text[at:]
    if kind == 2:
        return text[:at] + text[at:][::-1]
    return text[:at] + rng.choice(("[", "]]", "[guard]\n", '"', "=", ".", "\\", "[tls.ca]\n")) + text[at:]


def environment(rng: random.Random, kind: type, prefix: str) -> dict[str, str]:
    env = {}
    for _ in range(rng.choice((0, 0, 0, 1, 2))):
        name = environment_name(prefix, rng.choice(KEYS[kind]))
        if rng.random() < 0.2:
            name = mutate(rng, name)
        env[name] = rng.choice((*WORDS, "1,2,3", ",,,", " 5 ", "TRUE", "٣"))
    return env


@pytest.mark.parametrize("seed", range(10))
def test_a_thousand_mutations_each(tmp_path: Path, seed: int) -> None:
    path, valid, refused = tmp_path / "x.toml", 0, 0
    for number in range(seed * INPUTS // 10, (seed + 1) * INPUTS // 10):
        rng = random.Random(number)
        kind, prefix = rng.choice(SIDES)
        keys = KEYS[kind]
        text = toml(rng, keys)
        path.write_bytes(text.encode("utf-8", "surrogatepass") if rng.random() < 0.97 else rng.randbytes(200))
        env = environment(rng, kind, prefix)
        try:
            config = load(path, kind, env, prefix)
        except ConfigError as error:
            refused += 1
            said = str(error)
            assert any(key.rpartition(".")[2] in said for key in keys) or str(path) in said or any(name in said for name in env), (
                number,
                said,
            )
            assert len(said) < 20_000, (number, said[:200])
        else:
            valid += 1
            # What was let in is what the type promises: it converts back to itself.
            assert msgspec.convert(msgspec.to_builtins(config), kind) == config, number
    assert refused > 500, "the mutations are too tame"
    assert valid > 5, "the mutations never leave anything valid"


def test_a_file_that_is_none_or_too_large(tmp_path: Path) -> None:
    large = tmp_path / "large.toml"
    large.write_text("#" * 2_000_000)
    for path in (tmp_path, tmp_path / "absent", large):
        with pytest.raises(ConfigError, match=str(path)):
            load(path, AgentConfig, {}, AGENT_PREFIX)


def test_a_mode_that_is_none(tmp_path: Path) -> None:
    path = tmp_path / "x.toml"
    path.write_text('default_mode = "turbo"\n')
    with pytest.raises(ConfigError, match="default_mode = 'turbo'.*" + ", ".join(Mode)):
        load(path, AgentConfig, {}, AGENT_PREFIX)
