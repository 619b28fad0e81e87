"""Linear and mixed-integer models given as arrays, solved by what OR-Tools brings: GLOP and PDLP, and HiGHS through MathOpt.

Models go to the solvers as sparse arrays, never term by term (15-38 s in Python at 1,300 VMs x 100 hosts). A linear bound is not taken from
a solver's word: `proven` recomputes it from the dual values, which is valid whatever they are.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta
from typing import Any, Final

import numpy as np
from ortools.linear_solver.python import model_builder_helper as native
from ortools.math_opt import model_pb2
from ortools.math_opt.python import mathopt

from coordinator.placement.exact.relaxation import Relaxation
from coordinator.placement.problem import F64

ZERO: Final = 1e-7  # reduced cost below which a column without a limit counts as free: solvers keep signs to 1e-8 or so
SLOPPY: Final = 1e-7  # relative, taken off bounds for rounding in sums of many terms


@dataclass(frozen=True, kw_only=True)
class LinearAnswer:
    """What a solver found. Without a solution `value` is None; without a proof `bound` is -inf."""

    value: F64 | None  # [column]
    objective: float
    bound: float
    duals: F64 | None  # [row], of linear models
    infeasible: bool


def solve_linear(model: Relaxation, *, deadline_s: float, solver: str = "glop") -> LinearAnswer:
    """The model with its 0-1 columns between 0 and 1, by "glop" or "pdlp"."""
    helper: Any = native.ModelBuilderHelper()
    helper.fill_model_from_sparse_data(model.low, model.high, model.cost, model.row_low, model.row_high, model.rows)
    run = native.ModelSolverHelper(solver)
    run.set_time_limit_in_seconds(max(deadline_s, 0.001))
    run.solve(helper)
    infeasible = run.status() == native.SolveStatus.INFEASIBLE
    if run.status() != native.SolveStatus.OPTIMAL:
        return LinearAnswer(value=None, objective=np.inf, bound=-np.inf, duals=None, infeasible=infeasible)
    duals = np.asarray(run.dual_values())
    return LinearAnswer(
        value=np.asarray(run.variable_values()),
        objective=float(run.objective_value()) + model.constant,
        bound=proven(model, duals),
        duals=duals,
        infeasible=False,
    )


def solve_whole(model: Relaxation, *, deadline_s: float, gap: float = 1e-4) -> LinearAnswer:
    """The model with whole 0-1 columns, by HiGHS, to within `gap` of the best.

    MathOpt refuses `threads` and cut-offs for HiGHS; with models like these it uses one thread.
    """
    parameters = mathopt.SolveParameters(time_limit=timedelta(seconds=max(deadline_s, 0.001)), relative_gap_tolerance=gap)
    result = mathopt.solve(mathopt.Model.from_model_proto(as_proto(model)), mathopt.SolverType.HIGHS, params=parameters)
    reason = result.termination.reason
    infeasible = reason == mathopt.TerminationReason.INFEASIBLE
    found = result.has_primal_feasible_solution()
    value = np.array(list(result.variable_values().values())) if found else None
    bound = float(result.best_objective_bound()) if not infeasible else np.inf
    return LinearAnswer(
        value=value,
        objective=float(result.objective_value()) + model.constant if found else np.inf,
        bound=bound + model.constant if not np.isnan(bound) else -np.inf,
        duals=None,
        infeasible=infeasible,
    )


def as_proto(model: Relaxation) -> model_pb2.ModelProto:
    """MathOpt's message of the arrays; ids are column and row numbers."""
    proto = model_pb2.ModelProto()
    entries = model.rows.tocoo()
    costly = np.flatnonzero(model.cost)
    proto.variables.ids.extend(range(len(model.cost)))
    proto.variables.lower_bounds.extend(model.low.tolist())
    proto.variables.upper_bounds.extend(model.high.tolist())
    proto.variables.integers.extend(model.whole.tolist())
    proto.objective.linear_coefficients.ids.extend(costly.tolist())
    proto.objective.linear_coefficients.values.extend(model.cost[costly].tolist())
    proto.linear_constraints.ids.extend(range(len(model.row_low)))
    proto.linear_constraints.lower_bounds.extend(model.row_low.tolist())
    proto.linear_constraints.upper_bounds.extend(model.row_high.tolist())
    proto.linear_constraint_matrix.row_ids.extend(entries.row.tolist())
    proto.linear_constraint_matrix.column_ids.extend(entries.col.tolist())
    proto.linear_constraint_matrix.coefficients.extend(entries.data.tolist())
    return proto


def proven(model: Relaxation, duals: F64) -> float:
    """The lower bound that these row prices prove: price x limit of each row, and of each column its cheaper end at its reduced cost."""
    at = np.where(duals > 0.0, model.row_low, model.row_high)
    price = np.where(np.isfinite(at), duals, 0.0)
    reduced = model.cost - model.rows.T @ price
    end = np.where(reduced > 0.0, model.low, model.high)
    reduced = np.where(np.isfinite(end) | (np.abs(reduced) > ZERO), reduced, 0.0)
    rows = np.where(np.isfinite(at), at, 0.0) * price
    columns = np.where(reduced == 0.0, 0.0, np.where(reduced == 0.0, 0.0, end) * reduced)
    value = float(rows.sum() + columns.sum()) + model.constant
    return value - SLOPPY * (abs(value) + float(np.abs(rows).sum()) * 1e-3)
