"""A report as CSV and as a page to print. Pure.

CSV: RFC 4180, one row a VM, the totals, then a second table that says how each column is computed. Text cells that a spreadsheet would
take for a formula begin with an apostrophe (OWASP, "CSV injection"); numbers are left as they are. The page has no script and only our
own style sheet.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from datetime import UTC, datetime
from decimal import Decimal
from html import escape
from typing import Final

from coordinator.learning.objectives import METRICS
from coordinator.service.reports import Report, ReportFigures

_FORMULA: Final = ("=", "+", "-", "@", "\t", "\r", "\n", "＝", "＋", "－", "＠")
_FIGURES: Final = tuple(name for name in ReportFigures.__struct_fields__ if name != "objectives")
_STATES: Final = ("good", "bad", "unknown")
_TEXTS: Final = ("vm_id", "name", "application", "priority", "host_id")
_SHOWN: Final = {
    "known_hours": "hours known",
    "cpu_used_core_hours": "core-hours used",
    "cpu_core_hours": "granted",
    "memory_used_gib_hours": "GiB-hours used",
    "memory_gib_hours": "granted",
    "energy_kwh": "kWh",
    "cost": "cost",
    "cost_static": "static",
    "cost_reactive": "reactive",
    "saved_against_static": "saved against static",
    "saved_against_reactive": "against reactive",
}


def report_csv(report: Report) -> str:
    """The report as CSV, lines end with CRLF."""
    out = io.StringIO(newline="")
    writer = csv.writer(out, lineterminator="\r\n")
    writer.writerow([*_TEXTS, *_FIGURES, *(f"{metric}_{state}_minutes" for metric in METRICS for state in _STATES)])
    for row in report.vms:
        writer.writerow([*(safe(getattr(row, name) or "") for name in _TEXTS), *_numbers(row.figures)])
    writer.writerow(["total", *("" for _ in _TEXTS[1:]), *_numbers(report.totals)])
    writer.writerow([])
    writer.writerow(["what", "how it is computed"])
    writer.writerow(["client", safe(report.client)])
    writer.writerow(["from", when(report.from_s)])
    writer.writerow(["until", when(report.until_s)])
    for name, text in report.methods.items():
        writer.writerow([safe(name), safe(text)])
    for note in report.notes:
        writer.writerow(["note", safe(note)])
    for part in report.accuracy:
        writer.writerow([f"forecast error to Naive, {part.resource}", "" if part.to_naive is None else repr(part.to_naive)])
    return out.getvalue()


def report_html(report: Report, style: str) -> str:
    """The report as a page; `style`: address of its style sheet."""
    title = f"{report.client or 'VMs of no client'}: {when(report.from_s)} to {when(report.until_s)}"
    head = "".join(f'<th scope="col">{escape(text)}</th>' for text in ("VM", "application", "priority", *_SHOWN.values(), *METRICS))
    rows = "".join(_tr([row.name or row.vm_id, row.application, row.priority], row.figures) for row in report.vms)
    totals = _tr(["all", "", ""], report.totals)
    kept = "".join(f"<li>{escape(metric)}: {_percent(share)} of the minutes seen</li>" for metric, share in report.compliance.items())
    accuracy = "".join(
        f"<tr><th scope='row'>{escape(part.resource)}</th><td>{_plain(part.to_naive)}</td><td>{_percent(part.coverage_80)}</td></tr>"
        for part in report.accuracy
    )
    methods = "".join(f"<dt>{escape(name)}</dt><dd>{escape(text)}</dd>" for name, text in report.methods.items())
    notes = "".join(f"<p>{escape(note)}</p>" for note in report.notes)
    return (
        f'<!doctype html><html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width">'
        f'<title>{escape(title)}</title><link rel="stylesheet" href="{escape(style)}"></head><body><main><h1>{escape(title)}</h1>'
        f"<p>Made {when(int(report.made_s))} by Tidegate. Times are UTC.</p>{notes}"
        f"<h2>Service objectives</h2><ul>{kept or '<li>no minute was counted</li>'}</ul>"
        f"<h2>VMs</h2><table><thead><tr>{head}</tr></thead><tbody>{rows}</tbody><tfoot>{totals}</tfoot></table>"
        f"<p>Objectives: good / bad / unknown minutes.</p>"
        f"<h2>Forecasts of the last day</h2><table><thead><tr><th scope='col'>resource</th><th scope='col'>error, Naive = 1</th>"
        f"<th scope='col'>inside the 80 % band</th></tr></thead><tbody>{accuracy}</tbody></table>"
        f"<h2>How it is computed</h2><dl>{methods}</dl></main></body></html>"
    )


def safe(text: str) -> str:
    """A text cell that no spreadsheet takes for a formula."""
    return f"'{text}" if text.lstrip(" ").startswith(_FORMULA) else text


def when(second: int) -> str:
    """UTC, to the minute."""
    return datetime.fromtimestamp(second, UTC).strftime("%Y-%m-%dT%H:%MZ")


def _numbers(figures: ReportFigures) -> list[str]:
    cells = [_plain(getattr(figures, name)) for name in _FIGURES]
    for metric in METRICS:
        part = figures.objectives.get(metric)
        cells += ["" if part is None else str(getattr(part, state)) for state in _STATES]
    return cells


def _tr(texts: Sequence[str], figures: ReportFigures) -> str:
    name, *rest = (escape(text) for text in texts)
    numbers = [_plain(getattr(figures, name)) or "?" for name in _SHOWN]
    for metric in METRICS:
        part = figures.objectives.get(metric)
        numbers.append("-" if part is None else f"{part.good} / {part.bad} / {part.unknown}")
    cells = "".join(f"<td>{text}</td>" for text in rest) + "".join(f'<td class="number">{text}</td>' for text in numbers)
    return f"<tr><th scope='row'>{name}</th>{cells}</tr>"


def _plain(value: Decimal | float | None) -> str:
    if value is None:
        return ""
    return f"{value:f}" if isinstance(value, Decimal) else f"{value:.3f}"


def _percent(share: float | None) -> str:
    return "unknown" if share is None else f"{100.0 * share:.3f} %"
