"""The Pool port on Ray: one actor per forecast shard, spread over the nodes there are; tasks for training and for placement.

An actor owns its VMs' arrays and holds nothing that can't be rebuilt. When one dies (a kill, its node's death, no answer in time), it alone
is replaced, the others finish their call, and PoolLost names the VMs whose history has to be loaded again. The global model is kept
here and given to every new actor. Shards keep within a stated memory (memory.py): a fleet that outgrows them gets more shards, and
where the machines have no room for those, FleetTooLarge says what would be needed.
Docs: docs.ray.io "Actors", "Fault tolerance", "Scheduling strategies".
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from coordinator.compute import EXPLAIN_S, PLACE_GRACE_S, FleetTooLarge, NotNow, PoolLost
from coordinator.compute.memory import ShardBudget, ShardMemory
from coordinator.compute.ray_session import RaySession, ray  # from there: it sets what Ray reads on import
from coordinator.compute.shard import Shard, Told, challenge, train
from coordinator.compute.sharding import join_forecasts, shard_of, split_bucket, split_history, split_posts
from coordinator.forecast.challengers import ChallengerForecast, Report, Turn
from coordinator.forecast.engine import ForecastOptions
from coordinator.forecast.events.model import Labels, Occurrences
from coordinator.forecast.why import ForecastWhy
from coordinator.model import BucketBlock, ForecastBlock, HistoryBlock
from coordinator.placement.explain.plan import Placed, hold
from coordinator.placement.fleet.fleet_problem import PlacementRequest
from shared.refusal import RefusalCode
from shared.units import GIB, MIB

SHARD_BYTES: Final = 2 * GIB
ANSWER_S: Final = 240.0  # a tick's answer is worthless once the next bucket closes
LOAD_S: Final = 1800.0
START_S: Final = 60.0  # a worker process is there in a second or two; one whose start hangs is replaced
TURN_S: Final = 3600.0
LOAD_ATTEMPTS: Final = 3
GONE: Final = (
    ray.exceptions.RayActorError,
    ray.exceptions.ObjectLostError,
    ray.exceptions.NodeDiedError,
    ray.exceptions.WorkerCrashedError,
    ray.exceptions.LocalRayletDiedError,
    TimeoutError,
)


class RayPool:
    """Starts a local Ray (or joins the cluster of `address`) and at least `shards` actors. Ray's sockets and logs go to `state`/ray."""

    def __init__(
        self,
        options: ForecastOptions,
        shards: int,
        state: Path | None = None,
        address: str | None = None,
        *,
        shard_bytes: int = SHARD_BYTES,
    ) -> None:
        """`state` None: a temporary folder. `shard_bytes`: the most memory that one shard may take."""
        self._session = RaySession(shards, state, address)
        self._options = options
        self._budget = ShardBudget(ring=options.ring, limit_bytes=shard_bytes)
        # next to no CPU is claimed: a fleet whose nodes die must go on forecasting, if slower, on those that are left. Not none: Ray puts
        # actors that need nothing anywhere, whatever node they are meant for.
        self._actor = ray.remote(num_cpus=0.01, max_restarts=0, max_task_retries=0)(Shard)
        self._train = ray.remote(num_cpus=0)(train)
        # one process a turn: what the libraries take (300 MiB and more) goes with it
        self._challenge = ray.remote(num_cpus=0, max_calls=1, max_retries=0)(_challenge)
        self._solve = ray.remote(num_cpus=0, max_retries=0)(_solve)  # a second try would come after the deadline
        self._model: Any = None  # reference to the newest global model in Ray's object store
        self._told: Any = None  # reference to the calendar and labels that new actors are told
        self._actors: list[Any] = []
        self._homes: list[str] = []  # node of each actor
        self._start_all(shards)

    @property
    def shards(self) -> int:
        """How many there are now; a fleet that outgrows them gets more."""
        return len(self._actors)

    async def load(self, history: HistoryBlock) -> None:
        """Load the shards of these VMs; shards with none of them stay as they are. A worker that dies meanwhile is replaced and loaded."""
        parts = split_history(history, self.shards)
        if self._make_room(history.vm_ids, max(len(part.vm_ids) for part in parts)):
            parts = split_history(history, self.shards)
        waiting = {i: part for i, part in enumerate(parts) if part.vm_ids}
        for _ in range(LOAD_ATTEMPTS):
            asked = {i: self._actors[i] for i in waiting}
            answers = await self._ask({i: actor.__ray_ready__.remote() for i, actor in asked.items()}, START_S)
            there = {i: actor for i, actor in asked.items() if not isinstance(answers[i], BaseException)}
            await self._warm(list(there.values()))
            answers |= await self._ask({i: actor.load.remote(waiting[i]) for i, actor in there.items()}, LOAD_S)
            lost = self._replace_lost(asked, answers)
            waiting = {i: waiting[i] for i in lost}
            if not waiting:
                return
            reason = lost[min(lost)]
        raise PoolLost(f"forecast workers died {LOAD_ATTEMPTS} times while they loaded history: {_first_line(reason)}")

    async def forecast(self, bucket: BucketBlock, capacity: Mapping[str, Sequence[float]]) -> ForecastBlock:
        """Raises PoolLost when a worker died or VMs had to be spread anew; every other shard has taken the bucket then."""
        split = split_bucket(bucket, self.shards)
        if self._make_room(bucket.vm_ids, max(len(part.vm_ids) for part in split)):
            raise PoolLost(f"{len(bucket.vm_ids)} VMs outgrew the memory of their shards; spread anew over {self.shards}")
        parts = {i: part for i, part in enumerate(split) if part.vm_ids}
        asked = {i: self._actors[i] for i in parts}
        calls = {i: asked[i].advance.remote(part, {vm_id: capacity[vm_id] for vm_id in part.vm_ids}) for i, part in parts.items()}
        answers = await self._ask(calls, ANSWER_S)
        lost = self._replace_lost(asked, answers)
        if lost:
            # who answered first and died then would only be found out by the next call, which may be the caller's last try
            also = {i: actor for i, actor in enumerate(self._actors) if i not in lost}
            lost |= self._replace_lost(also, await self._ask({i: actor.memory.remote() for i, actor in also.items()}, ANSWER_S))
            gone = frozenset(vm_id for vm_id in bucket.vm_ids if shard_of(vm_id, self.shards) in lost)
            raise PoolLost(f"{len(lost)} of {self.shards} forecast workers died: {_first_line(lost[min(lost)])}", gone)
        return join_forecasts(list(answers.values()), bucket.vm_ids)

    async def retrain(self, history: HistoryBlock) -> None:
        """Train in a task of its own, away from the actors; Ray repeats it elsewhere when its node dies. Then install it in all shards.

        A shard that is dead is no reason to fail: its successor starts with the newest model.
        """
        model = await self._train.remote(self._options, history, self._model, self._told)
        if model is None:
            return
        self._model = ray.put(model)
        _raise_bugs(await self._ask({i: actor.install.remote(self._model) for i, actor in enumerate(self._actors)}, LOAD_S))

    async def explain(self, vm_id: str) -> ForecastWhy | None:
        """See the port. A dead worker is left to the next forecast, which also knows whose history to load."""
        actor = self._actors[shard_of(vm_id, self.shards)]
        try:
            why: ForecastWhy | None = await _answer(actor.explain.remote(vm_id), EXPLAIN_S)
        except TimeoutError:
            raise NotNow(f"the worker of {vm_id!r} is busy: no answer in {EXPLAIN_S:g} s") from None
        except GONE:
            raise NotNow(f"the worker of {vm_id!r} is gone; it is replaced with the next forecast") from None
        return why

    async def challenge(self, history: HistoryBlock, turn: Turn) -> tuple[Report, ...]:
        """In a process of its own, at low priority. A turn whose process dies, or that does not end, is a failure of its challengers.

        What dead shards should have heard is lost until the next turn.
        """
        task = self._challenge.remote(history, turn, self._told)
        try:
            said, reports = await _answer(task, TURN_S)
        except (*GONE, ray.exceptions.OutOfMemoryError) as error:
            ray.cancel(task, force=True)
            why = (f"the turn's process was lost: {_first_line(error)}",)
            return tuple(Report(name=name, asked=len(rows), answered=0, cpu_s=0.0, failures=why) for name, rows in turn.chosen.items())
        parts = {i: part for i, part in enumerate(split_posts(said, self.shards)) if part}
        _raise_bugs(await self._ask({i: self._actors[i].post.remote(part) for i, part in parts.items()}, ANSWER_S))
        return tuple(reports)

    async def announce(self, calendar: Occurrences, labels: Mapping[str, Labels]) -> None:
        """The calendar and the VMs' labels from now on; told before `load`, history is read with them. New actors are told too."""
        self._told = ray.put((calendar, dict(labels)))
        _raise_bugs(await self._ask({i: actor.announce.remote(self._told) for i, actor in enumerate(self._actors)}, LOAD_S))

    async def place(self, request: PlacementRequest) -> Placed:
        """In a task of its own, which is killed when it does not answer."""
        # 10,000 VMs are 0.4 s to serialise: not in the event loop
        question = await asyncio.get_running_loop().run_in_executor(None, ray.put, request.lean())
        task = self._solve.remote(question)
        seconds = request.deadline_s + PLACE_GRACE_S
        try:
            placed: Placed = await _answer(task, seconds)
        except (*GONE, ray.exceptions.OutOfMemoryError) as error:
            ray.cancel(task, force=True)
            return hold(request.forecast.issued_s, RefusalCode.SOLVER_LOST, _first_line(error), wall_ms=1000.0 * seconds)
        return placed

    async def warm(self) -> list[tuple[str, ...]]:
        """Have every kernel ready in every worker, as `load` does; names of those that each had to compile."""
        await self._warm(self._actors)
        return list(await asyncio.gather(*(actor.warm.remote() for actor in self._actors)))

    async def memory(self) -> list[ShardMemory]:
        """What each living shard has, against what it may have."""
        answers = await self._ask({i: actor.memory.remote() for i, actor in enumerate(self._actors)}, ANSWER_S)
        return [answer for answer in answers.values() if isinstance(answer, ShardMemory)]

    async def close(self) -> None:
        await asyncio.get_running_loop().run_in_executor(None, self._session.close)

    async def _warm(self, actors: list[Any]) -> None:
        """Kernels first; who is the first worker of this pool fills the cache for the others. Which one is dead, the next call tells."""
        for group in (actors[:1], actors[1:]):
            await self._ask(dict(enumerate(actor.warm.remote() for actor in group)), LOAD_S)

    def _start_all(self, shards: int) -> None:
        self._actors, self._homes = [], []
        for _ in range(shards):
            actor, home = self._start()
            self._actors.append(actor)
            self._homes.append(home)

    def _start(self) -> tuple[Any, str]:
        """A new actor and its node: the one with the most memory for each shard that it would have then."""
        memory = {node["NodeID"]: node["Resources"].get("memory", 0.0) for node in ray.nodes() if node["Alive"]}
        home = max(sorted(memory), key=lambda node: memory[node] / (self._homes.count(node) + 1))
        # soft: a node that dies at this moment is another's turn
        near = ray.util.scheduling_strategies.NodeAffinitySchedulingStrategy(home, soft=True)
        actor = self._actor.options(scheduling_strategy=near).remote(self._options, self._budget.limit_bytes)
        if self._model is not None:
            actor.install.remote(self._model)
        if self._told is not None:
            actor.announce.remote(self._told)
        return actor, home

    def _make_room(self, vm_ids: Sequence[str], fullest: int) -> bool:
        """More shards where one would not keep its budget. True = the VMs are spread anew, and all actors are new and empty."""
        if fullest <= self._budget.most_vms:
            return False
        try:
            shards = self._budget.shards_for(vm_ids, self.shards + 1)
        except ValueError as error:
            raise FleetTooLarge(f"ray_shard_bytes {self._budget.limit_bytes}: {error}") from error
        needed = shards * self._budget.needed(-(-len(vm_ids) // shards))
        room = int(ray.cluster_resources().get("memory", 0))
        if needed > room:
            raise FleetTooLarge(
                f"{len(vm_ids)} VMs need {shards} forecast shards and {needed // MIB} MiB; the machines have {room // MIB} MiB: add nodes, "
                f"or shorten cycle.history_buckets ({self._options.ring})"
            )
        for actor in self._actors:
            ray.kill(actor)
        self._start_all(shards)
        return True

    async def _ask(self, calls: Mapping[int, Any], seconds: float) -> dict[int, Any]:
        """Every shard's answer or error, once all have answered: no call of this one runs into the next."""
        answers = await asyncio.gather(*(_answer(call, seconds) for call in calls.values()), return_exceptions=True)
        return dict(zip(calls, answers, strict=True))

    def _replace_lost(self, asked: Mapping[int, Any], answers: Mapping[int, Any]) -> dict[int, BaseException]:
        """Start new actors for those that are gone; returns what each said last. Any other error is raised."""
        lost = {i: answer for i, answer in answers.items() if isinstance(answer, GONE)}
        for i in lost:
            if asked[i] is self._actors[i]:  # a second call may learn of the same death
                ray.kill(asked[i])  # no answer in time is not dead yet
                self._homes[i] = ""
                self._actors[i], self._homes[i] = self._start()
        _raise_bugs(answers)
        return lost


def _raise_bugs(answers: Mapping[int, Any]) -> None:
    """Who is gone is found out by the next call that needs it; any other error is raised."""
    for answer in answers.values():
        if isinstance(answer, BaseException) and not isinstance(answer, GONE):
            raise answer


async def _answer(call: Any, seconds: float) -> Any:
    async def answer() -> Any:
        return await call

    try:
        return await asyncio.wait_for(answer(), seconds)
    except TimeoutError:
        raise TimeoutError(f"no answer in {seconds:g} s") from None


def _solve(request: PlacementRequest) -> Placed:
    from coordinator.compute.solving import solve  # noqa: PLC0415  # OR-tools only where it is used

    return solve(request)


def _challenge(history: HistoryBlock, turn: Turn, told: Told | None) -> tuple[tuple[ChallengerForecast, ...], tuple[Report, ...]]:
    os.nice(10)  # forecasts have a deadline, and this process ends with the turn
    return challenge(history, turn, told)


def _first_line(error: BaseException) -> str:
    return str(error).partition("\n")[0] or type(error).__name__
