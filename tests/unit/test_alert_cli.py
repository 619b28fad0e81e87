"""What `tidegate alert` takes as matchers and durations, and what it says where it cannot."""

from __future__ import annotations

import pytest
from click.testing import CliRunner

from coordinator.alert_cli import matcher, seconds
from coordinator.cli import cli
from shared.errors import ConfigError, HostError


@pytest.mark.parametrize(
    ("text", "name", "value", "regex", "equal"),
    [
        ("host=kvm-1", "host", "kvm-1", False, True),
        ("host!=kvm-1", "host", "kvm-1", False, False),
        ("host=~kvm-1.*", "host", "kvm-1.*", True, True),
        ("host!~a=b", "host", "a=b", True, False),
        ("client=", "client", "", False, True),
    ],
)
def test_matchers_read_as_alertmanagers(text: str, name: str, value: str, regex: bool, equal: bool) -> None:
    assert matcher(text) == {"name": name, "value": value, "regex": regex, "equal": equal}


@pytest.mark.parametrize("text", ["host", "=x", "a b=c", ""])
def test_what_is_no_matcher(text: str) -> None:
    with pytest.raises(ConfigError, match="LABEL=VALUE"):
        matcher(text)


@pytest.mark.parametrize(("text", "wanted"), [("30m", 1800), ("2h", 7200), ("7d", 604_800)])
def test_durations(text: str, wanted: int) -> None:
    assert seconds(text) == wanted


@pytest.mark.parametrize("text", ["", "0m", "h", "1.5h", "2w", "-1h"])
def test_what_is_no_duration(text: str) -> None:
    with pytest.raises(ConfigError, match="30m"):
        seconds(text)


def test_a_coordinator_that_is_not_there_is_named() -> None:
    done = CliRunner().invoke(cli, ["alert", "list", "--url", "http://127.0.0.1:9"])
    assert isinstance(done.exception, HostError)
    assert "http://127.0.0.1:9" in str(done.exception)
