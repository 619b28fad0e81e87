"""The site file: the documented example is one, and whatever is wrong is named with its field, value and what is allowed."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from coordinator.placement.fleet.site import DEFAULT_SITE, Duty, Pool, host_traits
from coordinator.placement.fleet.site_file import parse_site
from coordinator.sites import read_site
from shared.config import CoordinatorConfig, PlacementConfig
from shared.errors import ConfigError

PAGE = Path(__file__).parents[2] / "docs/placement.md"
EXAMPLE = re.search(r"```toml\n(.*?)```", PAGE.read_text(), re.DOTALL)


def test_the_documented_example_is_a_site_and_shows_every_kind_of_rule() -> None:
    assert EXAMPLE is not None
    site = parse_site(EXAMPLE[1])
    assert {rule.kind for rule in site.rules} == {"apart", "spread", "together", "licensed", "pinned", "never_spot", "fixed"}
    assert site.pool_of("kvm-07").name == "own" and site.pool_of("cloud-1").name == "rented"
    assert host_traits(site, "kvm-13").state is Duty.MAINTENANCE
    assert host_traits(site, "kvm-13").domains == {"rack": "r2", "zone": "b"}
    assert site.pools[1].price_at(9) == 1.2


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("[[pools]", "not valid TOML"),
        ("pool = 1", "unknown section 'pool': allowed are pools, hosts, rules, .*; the nearest is 'pools'"),
        ('[[pools]]\nname = "p"\nprice_per_hour = -1', r"pools\[0\].price_per_hour = -1: allowed is: expected `float` >= 0.0"),
        ('[[pools]]\nname = "p"\nprice_per_hour = nan', r"pools\[0\].price_per_hour = nan: allowed is a finite number"),
        ('[[pools]]\nname = "p"\nwatts = [1, 2]', r"pools\[0\].watts = \[1, 2\]: allowed is: expected `array` of length >= 11"),
        ('[[pools]]\nname = "p"\nprice = 1', r"pools\[0\]: object contains unknown field `price`: allowed are name, hosts, region"),
        ("[[pools]]\nsleep = true", r"pools\[0\]: object missing required field `name`"),
        ('[[pools]]\nname = "p"\n[[pools]]\nname = "p"', "pools of one name, 'p': allowed is each name once"),
        ('[[pools]]\nname = "p"\n[[pools]]\nname = "q"', "more than one names no hosts"),
        ('[[pools]]\nname = "p"\nprice_by_hour = [1, 2]', r"pools\[0\].price_by_hour has 2 prices: allowed 24"),
        ('[[pools]]\nname = "p"\ninterruptions_per_hour = 1', r"interruptions_per_hour = 1.0: allowed 0 unless spot = true"),
        ('[[pools]]\nname = "p"\nsleep = true\nsleep_watts = 99', r"sleep_watts = 99.0: allowed up to its idle watts, 93.7"),
        ('[[hosts]]\nhosts = ["h"]\nstate = "gone"', r"hosts\[0\].state = 'gone': allowed is: one of active, maintenance, spare"),
        ('[[hosts]]\nhosts = ["h"]\ndomains = { host = "x" }', "'host' is a level of its own"),
        ('[[rules]]\nname = "r"\nkind = "near"\nvms = ["a"]', r"rules\[0\].kind = 'near': allowed is: one of apart, spread, together"),
        ('[[rules]]\nname = "r"\nkind = "apart"', r"rules\[0\] \('r'\): no clients, applications or vms"),
        ('[[rules]]\nname = "r"\nkind = "apart"\nvms = ["a"]\nlevel = "rack"', r"rules\[0\] \('r'\).level = 'rack': allowed are host"),
        ('[[rules]]\nname = "r"\nkind = "apart"\nvms = ["a"]\nlimit = 0', r"rules\[0\].limit = 0: allowed is: expected `int` >= 1"),
        ('[[rules]]\nname = "r"\nkind = "pinned"\nvms = ["a"]', "at least one of them required, where kind = 'pinned'"),
        ('[[rules]]\nname = "r"\nkind = "pinned"\nvms = ["a"]\npools = ["x"]', "pools = 'x': allowed are none: no pool is defined"),
        (
            '[[rules]]\nname = "r"\nkind = "together"\nvms = ["a"]\n[[rules]]\nname = "s"\nkind = "apart"\nvms = ["a"]',
            "rules 'r' and 's' contradict each other over the same VMs",
        ),
        ("[moving]\nmargin = true", "moving.margin = True: allowed is: expected `float`, got `bool`"),
    ],
)
def test_what_is_wrong_is_named(text: str, told: str) -> None:
    with pytest.raises(ConfigError, match=told):
        parse_site(text)


def test_later_entries_of_a_host_win_field_by_field() -> None:
    site = parse_site(
        '[[pools]]\nname = "p"\nsleep = true\nwake_s = 90\n[[hosts]]\nhosts = ["h*"]\ndomains = { rack = "r" }\nwake_s = 30\n'
        '[[hosts]]\nhosts = ["h1"]\nsleep = false\ndomains = { zone = "z" }\n'
    )
    first, second = host_traits(site, "h1"), host_traits(site, "h2")
    assert (first.sleep, first.wake_s, first.domains) == (False, 30, {"rack": "r", "zone": "z"})
    assert (second.sleep, second.wake_s, second.domains) == (True, 30, {"rack": "r"})
    assert host_traits(DEFAULT_SITE, "x").watts == Pool(name="x").watts


def test_the_file_is_read_at_start_and_named_in_errors(tmp_path: Path) -> None:
    def config(path: Path) -> CoordinatorConfig:
        return CoordinatorConfig(placement=PlacementConfig(site=str(path)))

    assert read_site(CoordinatorConfig()) is DEFAULT_SITE
    path = tmp_path / "site.toml"
    with pytest.raises(ConfigError, match=r"placement.site .*site.toml: No such file"):
        read_site(config(path))
    path.write_text('[[pools]]\nname = "p"\n')
    assert read_site(config(path)).pools[0].name == "p"
    path.write_bytes(b"\xff\xfe")
    with pytest.raises(ConfigError, match="not UTF-8"):
        read_site(config(path))
    path.write_text("[moving]\nbase = -1")
    with pytest.raises(ConfigError, match=r"site.toml: moving.base = -1: allowed"):
        read_site(config(path))


@given(
    st.text(max_size=200) | st.sampled_from(["[[pools]]\n", "[[rules]]\nname = 3\n", "hosts = [[1]]", "pools = 3", "rules = {a = [nan]}"])
)
def test_no_text_does_more_than_be_refused(text: str) -> None:
    try:
        parse_site(text)
    except ConfigError as error:
        assert str(error).startswith("site file: ")
