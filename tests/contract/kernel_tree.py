"""Recorded trees of kernel files as one text file each, which any checkout can hold: names like `machine-qemu\\x2d1` are no file names.

    @ proc/10/comm          a file, its content on the lines that follow; the last newline is not part of it when the next line is `@ -`
    @ proc/10/ns/net -> net:[4026531840]        a symbolic link
NUL is written as its picture (U+2400). tests/realhost/record_trees.py writes these, `unpack` lays them out again.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

NUL = "\u2400"


def pack(head: str, files: Mapping[str, str], links: Mapping[str, str]) -> str:
    """One text of relative path -> content and relative path -> target, below `head` as a comment."""
    parts = [f"# {line}\n" for line in head.splitlines()]
    for name, target in sorted(links.items()):
        parts.append(f"@ {name} -> {target}\n")
    for name, content in sorted(files.items()):
        text = content.replace("\0", NUL)
        if any(line.startswith("@ ") for line in text.splitlines()):
            raise ValueError(f"{name}: a line begins like a header")
        parts.append(f"@ {name}\n{text}" if text.endswith("\n") or not text else f"@ {name}\n{text}\n@ -\n")
    return "".join(parts)


def unpack(text: str, root: Path) -> None:
    """Lay the tree out below `root`."""
    name, content = "", ""
    for line in [*(line for line in text.splitlines(keepends=True) if not line.startswith("# ")), "@ end\n"]:
        if not line.startswith("@ "):
            content += line
            continue
        if line == "@ -\n":
            content = content.removesuffix("\n")
            continue
        if name:
            path = root / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content.replace(NUL, "\0").encode())
        name, _, target = line[2:].rstrip("\n").partition(" -> ")
        content = ""
        if target:
            path = root / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.symlink_to(target)
            name = ""
