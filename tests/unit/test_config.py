"""Settings: what is right is read, what is wrong is named."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shared.clock import ScaledClock, SystemClock
from shared.config import AGENT_PREFIX, COORDINATOR_PREFIX, AgentConfig, ClockConfig, CoordinatorConfig, load
from shared.config_check import main as check
from shared.config_file import environment_name, settings
from shared.errors import EXIT_CONFIG, ConfigError
from shared.model import Mode, Priority


def agent(tmp_path: Path, text: str, env: dict[str, str] | None = None) -> AgentConfig:
    path = tmp_path / "agent.toml"
    path.write_text(text)
    return load(path, AgentConfig, env or {}, AGENT_PREFIX)


def test_defaults_are_safe_and_local() -> None:
    host = load(None, AgentConfig, {}, AGENT_PREFIX)
    fleet = load(None, CoordinatorConfig, {}, COORDINATOR_PREFIX)
    assert host.default_mode is Mode.OBSERVE
    assert host.coordinator_urls == ()
    assert {fleet.listen_agents.host, fleet.listen_http.host} == {"127.0.0.1"}


def test_file_values_are_read(tmp_path: Path) -> None:
    config = agent(
        tmp_path,
        """
        host_id = "kvm-7"
        coordinator_urls = ["wss://tidegate.example:7443"]
        cpu_commit_ratio = 3
        default_mode = "reactive"
        [tls]
        ca = "ca.pem"
        certificate = "kvm-7.pem"
        key = "kvm-7.key"
        [guard]
        step_timeout_s = 45
        """,
    )
    assert (config.host_id, config.coordinator_urls) == ("kvm-7", ("wss://tidegate.example:7443",))
    assert (config.cpu_commit_ratio, config.default_mode, config.guard.step_timeout_s) == (3.0, Mode.REACTIVE, 45)
    assert config.guard.cpu_floor_millicores == 100


def test_environment_overrides_the_file(tmp_path: Path) -> None:
    env = {
        "TIDEGATE_AGENT_SAMPLE_PERIOD_S": "7",
        "TIDEGATE_AGENT_GUARD_STEP_TIMEOUT_S": "9",
        "TIDEGATE_AGENT_CONFIG": "names the file, is no setting",
        "TIDEGATE_DATA": "is no setting of the agent",
    }
    config = agent(tmp_path, "sample_period_s = 3", env)
    assert (config.sample_period_s, config.guard.step_timeout_s) == (7, 9)


def test_environment_can_set_every_kind() -> None:
    env = {
        "TIDEGATE_COORDINATOR_RAY": "false",
        "TIDEGATE_COORDINATOR_SIZING_SIZE_QUANTILE_LOW": "0.75",
        "TIDEGATE_COORDINATOR_SIZING_SIZE_QUANTILE_NORMAL": "0.9",
        "TIDEGATE_COORDINATOR_SIZING_SIZE_QUANTILE_HIGH": "0.95",
        "TIDEGATE_COORDINATOR_SIZING_SIZE_QUANTILE_CRITICAL": "0.99",
    }
    config = load(None, CoordinatorConfig, env, COORDINATOR_PREFIX)
    assert config.ray is False
    assert [config.sizing.size_quantile.of(priority) for priority in Priority] == [0.75, 0.9, 0.95, 0.99]
    urls = {
        "TIDEGATE_AGENT_COORDINATOR_URLS": "wss://a:1, wss://b:2",
        **{f"TIDEGATE_AGENT_TLS_{name}": "x" for name in ("CA", "CERTIFICATE", "KEY")},
    }
    assert load(None, AgentConfig, urls, AGENT_PREFIX).coordinator_urls == ("wss://a:1", "wss://b:2")


@pytest.mark.parametrize(
    ("text", "key", "nearest"),
    [
        ("samle_period_s = 3", "samle_period_s", "sample_period_s"),
        ("[guard]\ncpu_flor_millicores = 1", "guard.cpu_flor_millicores", "guard.cpu_floor_millicores"),
        ("[gard]\ncpu_floor_millicores = 200", "gard", "guard"),
        ("step_timeout_s = 3", "step_timeout_s", "guard.step_timeout_s"),
    ],
)
def test_unknown_key_names_file_and_nearest(tmp_path: Path, text: str, key: str, nearest: str) -> None:
    with pytest.raises(ConfigError) as caught:
        agent(tmp_path, text)
    message = str(caught.value)
    assert f"{key!r}" in message
    assert str(tmp_path / "agent.toml") in message
    assert message.endswith(f"nearest valid one is {nearest!r}")


def test_unknown_variable_names_the_nearest() -> None:
    with pytest.raises(ConfigError, match="TIDEGATE_AGENT_SAMPEL_PERIOD_S; the nearest valid one is TIDEGATE_AGENT_SAMPLE_PERIOD_S"):
        load(None, AgentConfig, {"TIDEGATE_AGENT_SAMPEL_PERIOD_S": "5"}, AGENT_PREFIX)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("sample_period_s = 0", "sample_period_s = 0 in .*: allowed is an integer from 1 to 60"),
        ("sample_period_s = 61", "sample_period_s = 61 in .*: allowed is an integer from 1 to 60"),
        ('sample_period_s = "5"', "sample_period_s = '5' in .*: allowed is an integer from 1 to 60"),
        ("sample_period_s = true", "sample_period_s = True in .*: allowed is an integer"),
        ("cpu_commit_ratio = nan", "cpu_commit_ratio = nan in .*: allowed is a number from 0.1 to 64"),
        ("cpu_commit_ratio = inf", "cpu_commit_ratio = inf in .*: allowed is a number from 0.1 to 64"),
        ("guard = 3", r"guard = 3 in .*: allowed is a table of settings, \[guard\]"),
        ("[sample_period_s]\nx = 1", "sample_period_s = .* in .*: allowed is an integer"),
        ('default_mode = "fast"', "default_mode = 'fast' in .*: allowed is one of off, observe, reactive, predictive"),
        ('coordinator_urls = ["ws://plain:1"]', "coordinator_urls = .*: allowed is a list of at most 8, each text matching"),
        ('host_id = "a b"', "host_id = 'a b' in .*: allowed is text of at most 128"),
        ("[guard]\nbackoff_initial_s = 4000", "guard.backoff_initial_s = 4000: allowed 1 to backoff_max_s"),
        ('hypervisor = "simulated"', "workload: required"),
        ('coordinator_urls = ["wss://a:1"]', "tls: ca, certificate and key are required"),
        ('[tls]\nca = "ca.pem"', "tls: .* belong together"),
        ("[clock]\nspeed = 60.0", "clock: .* belong together"),
        ("[clock]\nspeed = 0.001\nsimulated_start_ns = 1\nreal_start_ns = 1", r"clock.speed = 0.001: allowed 0 .* or 0.01 to 10000"),
        ("sample_period_s =", "not valid TOML"),
    ],
)
def test_bad_values_name_setting_value_and_range(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        agent(tmp_path, text)


@pytest.mark.parametrize("value", ["", "five", "0", "61", "nan"])
def test_bad_variable_is_named(value: str) -> None:
    with pytest.raises(ConfigError, match="in environment variable TIDEGATE_AGENT_SAMPLE_PERIOD_S: allowed is an integer from 1 to 60"):
        load(None, AgentConfig, {"TIDEGATE_AGENT_SAMPLE_PERIOD_S": value}, AGENT_PREFIX)


def test_missing_and_huge_files_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="No such file"):
        load(tmp_path / "absent.toml", AgentConfig, {}, AGENT_PREFIX)
    with pytest.raises(ConfigError, match="larger than"):
        agent(tmp_path, "#" * 1_000_001)
    (tmp_path / "agent.toml").write_bytes(b"\xff\xfe")
    with pytest.raises(ConfigError, match="not valid TOML"):
        load(tmp_path / "agent.toml", AgentConfig, {}, AGENT_PREFIX)


@pytest.mark.parametrize(("kind", "prefix"), [(AgentConfig, AGENT_PREFIX), (CoordinatorConfig, COORDINATOR_PREFIX)])
def test_every_setting_has_its_own_variable_and_words(kind: type, prefix: str) -> None:
    rows = settings(kind)
    names = [environment_name(prefix, row.key) for row in rows]
    assert len(set(names)) == len(names)
    assert [row.key for row in rows if not (row.description and row.allowed and row.default)] == []


@pytest.mark.parametrize(("kind", "prefix"), [(AgentConfig, AGENT_PREFIX), (CoordinatorConfig, COORDINATOR_PREFIX)])
@given(data=st.data(), bad=st.sampled_from([math.nan, math.inf, -math.inf, -(2**80), 2**80, "?", [], {"x": 1}, 2.5]))
def test_no_value_outside_its_words_gets_in(kind: type, prefix: str, data: st.DataObject, bad: object) -> None:
    """Whatever stands in the file for a bounded number is either inside the bounds or a ConfigError, never a crash."""
    row = data.draw(st.sampled_from([row for row in settings(kind) if row.allowed.startswith("an integer")]))
    env = {environment_name(prefix, row.key): str(bad)}
    with pytest.raises(ConfigError, match=row.key.rpartition(".")[2]):
        load(None, kind, env, prefix)


def test_clock_follows_its_settings() -> None:
    assert isinstance(ClockConfig().open(), SystemClock)
    clock = ClockConfig(simulated_start_ns=5, real_start_ns=7, speed=60.0).open()
    assert isinstance(clock, ScaledClock)
    assert (clock.anchor.simulated_start_ns, clock.anchor.real_start_ns, clock.anchor.speed) == (5, 7, 60.0)


def test_check_command_tells_good_from_bad(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "c.toml"
    path.write_text("ray = false")
    assert check(["coordinator", str(path)]) == 0
    assert check(["agent", str(path)]) == EXIT_CONFIG
    assert "unknown setting 'ray'" in capsys.readouterr().err
    assert check(["fleet", str(path)]) == EXIT_CONFIG
    assert capsys.readouterr().err.startswith("usage:")


def test_the_example_is_valid_and_says_what_it_says() -> None:
    config = load(Path(__file__).parents[2] / "deploy" / "examples" / "agent.toml", AgentConfig, {}, AGENT_PREFIX)
    assert (config.host_id, config.guard.foreign_yield_s, config.exporter_vm_series) == ("kvm-1.example", 7200, True)
    assert config.migration.uri_of("kvm-2.example") == "qemu+tls://kvm-2.example/system"
