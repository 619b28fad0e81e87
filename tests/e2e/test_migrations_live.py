"""Placements carried out by real processes over real sockets: moves in waves, an operator's word, kill -9 in the middle, sleep and wake."""

from __future__ import annotations

import subprocess
from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
from moving_ring import MovingRing, daily_vm, flat_vm, host_of, moving_ring

from coordinator.demo import START_S
from shared.units import BUCKET_S

pytestmark = [pytest.mark.slow, pytest.mark.ring]  # ring: apart from other tests, for its clock runs so fast

Program = Callable[..., subprocess.CompletedProcess[str]]
CROWD, EACH = 8, 1500  # VMs that want 12 cores of a host's 8
RAMP = 16  # buckets after the start: not within the first placements' hour


def phases(plan: dict[str, Any]) -> Counter[str]:
    return Counter(move["phase"] for move in plan["moves"])


def approved(ring: MovingRing) -> dict[str, Any] | None:
    """The newest plan, once it may run; None = there is none that waits, or a newer one has just taken its place."""
    plan = ring.plan()
    if plan.get("status") != "proposed":
        return None
    answer = ring.put(f"migrations/{plan['id']}", {"action": "approve"})
    assert answer.status_code in (200, 409), answer.text
    return plan if answer.status_code == 200 else None


def spent(ring: MovingRing) -> dict[str, float]:
    """Client -> share of its error budget that is used up, where any is."""
    return {row["client"]: row["spent"] for row in ring.get("sizing")["budgets"] if row["spent"] > 0.0}


def ended_well(ring: MovingRing, plan: dict[str, Any]) -> None:
    """Every move of a plan that is done: where its VM is, its outcome, and that its host began it once, whatever was refused before."""
    where = ring.where()
    told = {row["outcome"]["step"]["id"]: (row["outcome"]["state"], row["outcome"]["code"]) for row in ring.get("outcomes?limit=500")}
    awake = {host for host in ring.fleet.host_ids if ring.awake(host)}  # one that was emptied may sleep by now, and its agent with it
    begun = Counter(step_id.rpartition("-")[0] for host in awake for step_id in ring.submitted(host))
    for move in plan["moves"]:
        assert move["phase"] == "done", f"{move}\n{told}\n{where}\n{ring.story()}"
        assert where[move["vm_id"]] == move["target"]
        which, _, tries = move["step_id"].rpartition("-")
        assert told[move["step_id"]][0] == "verified"
        assert begun[which] == (1 if move["source"] in awake else 0)
        # on a clock that runs so fast a busy moment is minutes: the host may find a step expired, and is then asked again
        before = {told.get(f"{which}-{n}") for n in range(1, int(tries))}
        assert before <= {("refused", "step_expired"), None}, before  # None: its plan expired before it was sent


def test_a_placement_is_carried_out_and_an_emptied_host_sleeps_until_it_is_needed(program: Program) -> None:
    crowded = host_of("host-0", [daily_vm("host-0", n, EACH, 1950, RAMP) for n in range(CROWD)])
    small = host_of("host-2", [flat_vm("host-2", 0, 200)], cores=2)
    with moving_ring([crowded, host_of("host-1", []), small], speed=200.0, approve="always", wave_vms=2, settle_s=20) as ring:
        plan = ring.until(lambda: (found := ring.plan()) and found["status"] == "done" and found, "the plan is done")
        assert plan["wave"] >= 2 and len(plan["moves"]) >= 3 and not plan["regressions"], ring.story()
        ended_well(ring, plan)
        assert ring.get("placement")["code"] is None and ring.get("moves")["code"] is None, "no mere advice"
        ring.until(lambda: ring.where().get("host-2-vm-0", "host-2") != "host-2", "the small host is emptied, by this plan or the next")
        ring.until(lambda: len(ring.where()) == CROWD + 1, "no VM was lost on its way")
        ring.until(lambda: ring.switched("host-2")[:1] == ["sleep"], "the emptied host is put to sleep")
        newest = max((ring.fleet.folder / "coordinator" / "placements").glob("*.json"), key=lambda path: path.stat().st_mtime)
        replayed = program("coordinator", "placement", "replay", str(newest))
        assert replayed.returncode == 0 and "the same" in replayed.stdout, replayed.stderr
        ring.until(lambda: ring.switched("host-2")[:2] == ["sleep", "wake"], "it is woken")
        assert ring.now_s() < START_S + RAMP * BUCKET_S, "before the demand is there"
        assert "host-2" in [line["host"] for line in ring.said("host silent, counts as full")], "it slept indeed"
        ring.until(lambda: ring.power("host-2") == "awake", "it is heard again")


def test_an_operator_lets_a_plan_run_ends_one_half_way_and_a_killed_coordinator_forgets_nothing() -> None:
    crowded = host_of("host-0", [flat_vm("host-0", n, EACH) for n in range(CROWD)])
    with moving_ring([crowded, host_of("host-1", [])], bits_per_s=150_000_000, speed=150.0, wave_vms=1, settle_s=20) as ring:
        assert ring.until(ring.plan, "a plan is proposed")["status"] == "proposed" and not ring.submitted("host-0")
        assert ring.put(f"migrations/{ring.plan()['id']}", {"action": "sing"}).status_code == 400
        first = ring.until(lambda: approved(ring), "a plan is approved")
        assert len(first["moves"]) >= 2, first
        ring.until(lambda: phases(ring.plan())["sent"], "a move is under way")
        assert ring.put(f"migrations/{first['id']}", {"action": "abort"}).json()["plan"]["status"] == "stopping"
        ended = ring.until(lambda: (found := ring.plan()) and found["status"] == "aborted" and found, "the plan ends")
        count = phases(ended)
        assert set(count) == {"done", "skipped"}, ended
        assert len(ring.submitted("host-0")) == count["done"], "what had not begun does not begin"
        audit = [(line["action"], line["actor"], line["plan"]) for line in ring.said("audit")]
        assert audit == [("approve_migration", "tests", first["id"]), ("abort_migration", "tests", first["id"])]

        second = ring.until(lambda: approved(ring), "another plan is proposed and approved")
        begun = ring.until(lambda: len(found := ring.submitted("host-0")) > count["done"] and found, "its first move is under way")
        used_up = ring.until(lambda: spent(ring), "the crowd has used up some of its clients' error budgets")
        ring.fleet.kill("coordinator")
        ring.start("coordinator")
        known = ring.until(lambda: spent(ring), "error budgets outlive a kill")
        assert all(0.5 * share < known[client] < 2.0 * share for client, share in used_up.items()), (used_up, known)
        done = ring.until(lambda: (found := ring.plan()) and found["status"] == "done" and found, "the plan is done")
        assert (done["id"], done["actor"]) == (second["id"], "tests")
        ended_well(ring, done)
        (under_way,) = [move for move in done["moves"] if move["step_id"] == begun[-1]]
        assert under_way["tries"] == 1
        assert len(ring.submitted("host-0")) == count["done"] + len(done["moves"])
        assert len(ring.where()) == CROWD
