"""`python -m shared.config_check agent|coordinator FILE`: is this a valid configuration? Says what is wrong and exits with 78 if not.

Deployment runs it on the target host before a new file takes the place of the old one.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Final

from shared.config import AgentConfig, CoordinatorConfig, load
from shared.errors import EXIT_CONFIG, ConfigError

SIDES: Final[dict[str, type]] = {"agent": AgentConfig, "coordinator": CoordinatorConfig}


def main(arguments: list[str]) -> int:
    """Exit code: 0 valid, 78 not."""
    match arguments:
        case [side, path] if side in SIDES:
            kind = SIDES[side]
        case _:
            sys.stderr.write("usage: python -m shared.config_check agent|coordinator FILE\n")
            return EXIT_CONFIG
    try:
        # the file alone: this shell's environment is not the service's
        load(Path(path), kind, {}, "")
    except ConfigError as error:
        sys.stderr.write(f"{error}\n")
        return EXIT_CONFIG
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
