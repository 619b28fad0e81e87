// Tables that several views have: steps, hosts' state, forecast scores.
import { badge, cell, el, num, setCells, sub, syncRows, vmLink } from "./dom.js";
import { RESOURCES, change, clock, inUnit, known, number, percent, words } from "./units.js";

export const APPLIED = new Set(["verified", "partial", "shadowed"]);
export const STEP_HEADS = ["Time", "VM", "Change", "Result", "Reason"];
export function showSteps(table, entries, empty = "No step yet.") {
  syncRows(table.tBodies[0], entries, ({ host_id, outcome }) => `${host_id}/${outcome.step.id}/${outcome.state}`, (row, { host_id, vm_name, outcome }) => {
    const { step } = outcome;
    const reason = el("span", {}, outcome.code ? el("span", { class: "code" }, outcome.code) : words(step.reason) || "–", sub(outcome.code ? words(step.reason) : `by ${outcome.origin}`));
    const value = outcome.state === "partial" ? outcome.value : step.value;
    setCells(row, () => document.createTextNode(outcome.finished_ns ? clock(outcome.finished_ns / 1e9) : "–"), [
      cell(el("span", {}, vmLink(step.vm_id, vm_name), sub(host_id))), cell(change(step.kind, step.before, value)),
      cell(badge(outcome.state, outcome.state, outcome.detail)), cell(reason, "wrap"),
    ]);
  }, empty);
}

export function modeBadges(host) {
  return el("span", {}, badge(host.mode), host.mode_pinned ? badge("pinned", "pinned", "pinned on the host itself: the API cannot change it") : null,
    host.mode_ordered && host.mode_ordered !== host.mode ? badge(`ordered: ${host.mode_ordered}`, "", "ordered by the API, not in force") : null,
    host.paused_by.length || host.paused ? badge("paused", "full", `kill switch held by ${host.paused_by.join(", ") || "the API, not yet confirmed by the host"}: nothing is changed here`) : null,
    host.vms_yielded ? badge(`${host.vms_yielded} yielded`, "", "VMs left alone because somebody else changed them") : null);
}
export function aliveBadges(host) {
  const full = host.counts_as_full ? badge("counts as full", "full", host.silent_reason || "") : null;
  return el("span", {}, el("span", { class: "together" }, badge(host.alive ? "alive" : "silent", host.alive ? "alive" : "full"), full), host.silent_reason ? sub(host.silent_reason) : null);
}

export const SCORE_HEADS = [["× Naive", "num", "pinball loss over that of the last value; below 1 is better"], ["in 80 %", "num", "share of actuals inside the central 80 % band"], ["in 95 %", "num"], ["Bias", "num", "mean forecast less actual"], ["Forecasts", "num"]];
export function scoreCells(score) {
  const { scale, unit } = RESOURCES[score.resource];
  const bias = known(score.bias) ? `${score.bias > 0 ? "+" : ""}${inUnit(score.bias, scale)} ${unit}` : "–";
  return [num(known(score.to_naive) ? score.to_naive.toFixed(2) : "–"), num(percent(score.coverage_80)), num(percent(score.coverage_95)), num(bias), num(number(score.pairs, 0))];
}

// A table of whatever is not worth a layout of its own: columns are {head, of, num}. `steady`: a row whose item is as it was stays, and with
// it the focus of its buttons.
export function showRows(table, items, key, columns, empty, steady = false) {
  syncRows(table.tBodies[0], items, key, (row, item) => {
    const text = steady ? JSON.stringify(item) : null;
    if (steady && row.shown === text) return;
    row.shown = text;
    row.replaceChildren(...columns.map((column) => cell(column.of(item), column.num ? "num" : column.wrap ? "wrap" : "")));
  }, empty);
}
export const headsOf = (columns) => columns.map((column) => [column.head, column.num ? "num" : "", column.hint || ""]);
