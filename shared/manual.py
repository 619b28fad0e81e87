"""A program's manual page, made from the same tree of click commands that parses its command line. Pure.

Source: man-pages(7) and groff_man(7): a dot or quote at the start of a line and every backslash and dash are escaped.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import click


def manual_page(
    root: click.Group, program: str, version: str, *, section: int, exit_codes: Sequence[tuple[int, str]], files: Sequence[tuple[str, str]]
) -> str:
    """The page in groff's man macros. `exit_codes`: (code, meaning); `files`: (path, meaning)."""
    lines = [
        f".TH {_text(program.upper())} {section} {_quoted('')} {_quoted(f'tidegate {version}')} {_quoted('Tidegate')}",
        ".SH NAME",
        f"{_text(program)} \\- {_text(_words(root))}",
        ".SH SYNOPSIS",
        f".B {_text(program)}",
        "COMMAND [OPTION]... [ARGUMENT]...",
        ".SH COMMANDS",
    ]
    for path, command in commands(root, program):
        lines += [".SS " + _quoted(_synopsis(path, command)), _text(_words(command))]
        for option in command.params:
            if isinstance(option, click.Option):
                lines += [".TP", f".B {_text(_option(option))}", _text(option.help or "")]
    lines.append(".SH EXIT STATUS")
    for code, meaning in exit_codes:
        lines += [".TP", f".B {code}", _text(meaning)]
    lines.append(".SH FILES")
    for path, meaning in files:
        lines += [".TP", f".I {_text(path)}", _text(meaning)]
    return "\n".join(lines) + "\n"


def commands(root: click.Group, program: str) -> Iterator[tuple[str, click.Command]]:
    """Every command that does something, as (its words, command), sorted."""
    for name in sorted(root.commands):
        command = root.commands[name]
        if isinstance(command, click.Group):
            yield from commands(command, f"{program} {name}")
        else:
            yield f"{program} {name}", command


def _synopsis(path: str, command: click.Command) -> str:
    context = click.Context(command)
    return " ".join([path, *(part.make_metavar(context) for part in command.params if isinstance(part, click.Argument))])


def _option(option: click.Option) -> str:
    names = ", ".join(option.opts)
    return names if option.is_flag else f"{names} {option.make_metavar(click.Context(click.Command('')))}"


def _words(command: click.Command) -> str:
    return " ".join((command.help or "").split())


def _text(text: str) -> str:
    escaped = text.replace("\\", "\\e").replace("-", "\\-")
    return f"\\&{escaped}" if escaped.startswith((".", "'")) else escaped


def _quoted(text: str) -> str:
    return '"' + _text(text).replace('"', "\\(dq") + '"'
