"""The agent's program in an environment that holds tidegate[agent] and nothing else."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from pathlib import Path


def test_the_agent_starts_there(clean: Path, run: Callable[..., str]) -> None:
    assert "run" in run(clean / "bin" / "tidegate-agent", "--help")
    assert "--config" in run(clean / "bin" / "tidegate-agent", "run", "--help")


def test_every_agent_module_imports_there(clean: Path, run: Callable[..., str]) -> None:
    """No module of agent or shared needs what only the coordinator has; libvirt may be absent."""
    script = (
        "import pkgutil, importlib, agent, shared\n"
        "for root in (agent, shared):\n"
        "    for found in pkgutil.walk_packages(root.__path__, root.__name__ + '.'):\n"
        "        try: importlib.import_module(found.name)\n"
        "        except ModuleNotFoundError as error:\n"
        "            if error.name not in ('libvirt', 'libvirt_qemu'): raise\n"
    )
    run(clean / "bin" / "python", "-I", "-c", script)


def test_a_wrong_config_stops_the_agent_with_78(clean: Path, tmp_path: Path) -> None:
    config = tmp_path / "agent.toml"
    config.write_text("samle_period_s = 5\n")
    done = subprocess.run(
        [str(clean / "bin" / "tidegate-agent"), "run", "--config", str(config)], check=False, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 78
    assert "sample_period_s" in done.stderr
