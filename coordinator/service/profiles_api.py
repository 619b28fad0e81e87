"""Workload profiles over HTTP: of a VM, and of all that a client runs, worked out from history. Reads only."""

from __future__ import annotations

from typing import Annotated, Final

from litestar import get
from litestar.datastructures import State
from litestar.params import QueryParameter

from coordinator.service.problems import present
from coordinator.service.profiling import ProfilesView, WorkloadProfile
from coordinator.service.tenancy_api import READ_REFUSED, PathId
from coordinator.service.view import BOUNDS
from shared.refusal import RefusalCode

Days = Annotated[int, QueryParameter(ge=BOUNDS["days"][0], le=BOUNDS["days"][1], description="Days back")]


@get("/vms/{vm_id:str}/profile", responses=READ_REFUSED)
async def vm_profile(state: State, vm_id: PathId, days: Days = 14) -> WorkloadProfile:
    """Seasons and their strength, peaks, class, predictability, recommended size per resource and what drives it."""
    return present(await _view(state).of_vm(vm_id, days), RefusalCode.UNKNOWN_VM, "vm_id", vm_id, "an id of /api/v1/vms")


@get("/clients/{id:str}/profile", responses=READ_REFUSED)
async def client_profile(state: State, id: PathId, days: Days = 14) -> WorkloadProfile:
    """The same of the sum of a client's VMs; a client need not be registered, but have VMs."""
    return present(await _view(state).of_client(id, days), RefusalCode.INVALID_VALUE, "id", id, "a client that VMs belong to")


PROFILES: Final = [vm_profile, client_profile]


def _view(state: State) -> ProfilesView:
    view: ProfilesView = state["view"].profiles
    return view
