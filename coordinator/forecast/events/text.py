"""The words that operators write into calendars: category, scope, effect, duration. Text in, plain data out. Pure.

    category   backup
    scope      all | vm=ID[,ID...] | client=NAME | app=NAME, several joined by spaces or semicolons (all must agree)
    effect     cpu=+1500m memory=+2GiB disk=x3 net=+50Mbit, joined by spaces, commas or semicolons
    duration   45m, 1h30m, 2d

An effect is per VM: `+` or `-` adds, `x` multiplies. `net` stands for both directions. Every error names field, value and what is allowed.
"""

from __future__ import annotations

import math
import re
from typing import Final

from coordinator.forecast.events.model import MAX_DURATION_S, MAX_FACTOR, Effect, Scope
from coordinator.model import N_RESOURCES
from shared.units import CPU, DISK, GIB, KIB, MEMORY, MIB, NET_RX, NET_TX

MAX_WORDS: Final = 256  # characters of a name or category
RESOURCES_OF: Final = {
    "cpu": (CPU,),
    "memory": (MEMORY,),
    "disk": (DISK,),
    "net": (NET_RX, NET_TX),
    "net_rx": (NET_RX,),
    "net_tx": (NET_TX,),
}
_BYTES: Final = {"": 1.0, "B": 1.0, "kB": 1e3, "MB": 1e6, "GB": 1e9, "KiB": float(KIB), "MiB": float(MIB), "GiB": float(GIB)}
_BITS: Final = {"": 1.0, "bit": 1.0, "kbit": 1e3, "Mbit": 1e6, "Gbit": 1e9}
UNITS: Final[dict[str, dict[str, float]]] = {
    "cpu": {"m": 1.0, "": 1000.0},  # as Kubernetes writes it: 1500m = 1.5 CPUs
    "memory": _BYTES,
    "disk": _BYTES | {f"{unit}/s": size for unit, size in _BYTES.items() if unit},
    "net": _BITS | {f"{unit}/s": size for unit, size in _BITS.items() if unit},
}
_LARGEST: Final = 2.0**53  # beyond it a float no longer counts units
_CATEGORY: Final = re.compile(r"[a-z0-9][a-z0-9._-]{0,63}")
_ADDED: Final = re.compile(r"([+-][0-9]+(?:\.[0-9]+)?)([A-Za-z/]*)")
_FACTOR: Final = re.compile(r"[x*]([0-9]+(?:\.[0-9]+)?)")
_PART: Final = re.compile(r"([0-9]{1,9})([smhd])")
_SECONDS: Final = {"s": 1, "m": 60, "h": 3600, "d": 86_400}


def category(text: str) -> str:
    """A category's name, lower case. Raises ValueError."""
    name = text.strip().lower().replace(" ", "-")
    if not _CATEGORY.fullmatch(name):
        raise ValueError(f"category {text!r}: allowed letters, digits, '.', '_' and '-', at most 64")
    return name


def title(text: str) -> str:
    """A name for people, cut to a bounded length, without control characters."""
    return "".join(c for c in text.strip() if c.isprintable())[:MAX_WORDS]


def scope(text: str) -> Scope:
    """Whom an event touches. Raises ValueError."""
    found: dict[str, str] = {}
    for word in re.split(r"[;\s]+", text.strip()):
        if word in ("", "all"):
            continue
        key, _, value = word.partition("=")
        if key not in ("vm", "client", "app") or not value or key in found:
            raise ValueError(f"scope {word!r}: allowed all, vm=ID[,ID...], client=NAME, app=NAME, each once")
        found[key] = value
    ids = frozenset(name for name in found.get("vm", "").split(",") if name)
    return Scope(vm_ids=ids, client=found.get("client", ""), app=found.get("app", ""))


def effect(text: str) -> Effect:
    """A declared effect. Raises ValueError."""
    added, factor = [math.nan] * N_RESOURCES, [math.nan] * N_RESOURCES
    for word in re.split(r"[,;\s]+", text.strip()):
        if not word:
            continue
        key, _, value = word.partition("=")
        if key not in RESOURCES_OF:
            raise ValueError(f"effect {word!r}: allowed {', '.join(RESOURCES_OF)}, as cpu=+1500m or cpu=x2.5")
        for r in RESOURCES_OF[key]:
            if not (math.isnan(added[r]) and math.isnan(factor[r])):
                raise ValueError(f"effect {word!r}: this resource was given before; allowed once")
            if multiplier := _FACTOR.fullmatch(value):
                factor[r] = float(multiplier[1])
                if factor[r] > MAX_FACTOR:
                    raise ValueError(f"effect {word!r}: allowed x0 to x{MAX_FACTOR:g}")
            else:
                added[r] = _amount(word, key, value)
    return Effect(added=tuple(added), factor=tuple(factor))


def _amount(word: str, key: str, value: str) -> float:
    units = UNITS["net" if key.startswith("net") else key]
    match = _ADDED.fullmatch(value)
    if match is None or match[2] not in units:
        raise ValueError(
            f"effect {word!r}: allowed {key}=x2.5, or {key}=+N or -N with unit {', '.join(unit or '(none)' for unit in units)}"
        )
    amount = float(match[1]) * units[match[2]]
    if abs(amount) > _LARGEST:
        raise ValueError(f"effect {word!r}: allowed at most {_LARGEST:.0f} of the base unit")
    return amount


def duration_s(text: str) -> int:
    """Seconds of `1h30m` and the like. Raises ValueError."""
    parts = _PART.findall(text)
    seconds = sum(int(count) * _SECONDS[unit] for count, unit in parts)
    if "".join(count + unit for count, unit in parts) != text or not 1 <= seconds <= MAX_DURATION_S:
        raise ValueError(f"duration {text!r}: allowed 1s to {MAX_DURATION_S // 86_400}d, as 45m or 1h30m")
    return seconds
