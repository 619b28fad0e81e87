// How good the forecasts are: error, coverage, bias; by resource, horizon, model, client, application; the worst VMs; which models win.
import { readOr } from "./api.js";
import { cell, el, meter, num, panel, pick, scroll, setCells, syncRows, table, vmLink } from "./dom.js";
import { stamp } from "./freshness.js";
import { SCORE_HEADS, scoreCells } from "./tables.js";
import { RESOURCES, known, number, percent, resourceOf } from "./units.js";

const EVERY_MS = 5000;
const BY = { fleet: "resource", horizons: "minutes ahead", models: "model", clients: "client", applications: "application", worst: "worst VMs" };
const WHAT = { fleet: "Resource", horizons: "Minutes ahead", models: "Model", clients: "Client", applications: "Application", worst: "VM" };
const MEANT = 0.8; // of the 80 % band
const DRIFT = 0.05; // coverage of the last hour this far from the day's

export const qualityView = { title: "Quality", mount };

function mount(root, { turn }) {
  const state = { by: "fleet", window: "day", resource: "cpu_millicores" };
  const change = (key) => (value) => { state[key] = value; turn(); };
  const scores = panel("accuracy", "Forecast accuracy", pick("accuracy-by", "By", BY, state.by, change("by")),
    pick("accuracy-resource", "Resource", Object.fromEntries(Object.entries(RESOURCES).map(([key, { name }]) => [key, name])), state.resource, change("resource")),
    pick("window", "Of the last", { hour: "hour", day: "day", total: "run" }, state.window, change("window")));
  const scoreTable = table("accuracy", "forecast accuracy", ["Resource", ...SCORE_HEADS]);
  scores.body.append(scroll("forecast accuracy", "", scoreTable));
  const models = panel("winners", "Which models win");
  const modelTable = table("winners", "models by how many forecasts they led", ["Model", ["Led forecasts", "", "share of scored forecasts in which it had the largest weight"], ["× Naive", "num"], ["in 80 %", "num"]]);
  models.body.append(scroll("which models win", "", modelTable));
  const drift = panel("drift", "Drift");
  const driftTable = table("drift", "coverage and error of the last hour against the day's", ["Resource", ["in 80 %, day", "num"], ["in 80 %, hour", "num"], ["× Naive, day", "num"], ["× Naive, hour", "num"], "Judgement"]);
  drift.body.append(scroll("drift", "", driftTable), el("p", { class: "note muted" }, `Off: the last hour's coverage is ${percent(DRIFT)} or more from the day's, or its error above the last value's.`));
  root.append(scores.root, el("div", { class: "columns" }, el("div", {}, models.root), el("div", {}, drift.root)));

  return async () => {
    const [chosen, day, hour] = await Promise.all([`accuracy?limit=30&window=${state.window}`, "accuracy?limit=30&window=day", "accuracy?limit=30&window=hour"].map((path) => readOr(path, EVERY_MS)));
    if (!chosen) {
      scores.body.replaceChildren(el("p", { class: "note" }, "Your role sees the accuracy of its own VMs, on their pages."));
      return;
    }
    showScores(scores, scoreTable, chosen.data, state);
    stamp(scores, { at: chosen.at, everyMs: EVERY_MS });
    showModels(modelTable, chosen.data, state.resource);
    models.count.textContent = `${RESOURCES[state.resource].name} · of the last ${state.window === "total" ? "run" : state.window}`;
    stamp(models, { at: chosen.at, everyMs: EVERY_MS });
    showDrift(driftTable, day.data, hour.data);
    stamp(drift, { at: hour.at, everyMs: EVERY_MS });
  };
}

function showScores(panel_, table_, accuracy, { by, resource }) {
  table_.tHead.rows[0].cells[0].textContent = WHAT[by];
  panel_.count.textContent = by === "fleet" || by === "worst" ? "" : RESOURCES[resource].name;
  const rows = by === "fleet" ? accuracy.fleet.map((score) => ({ key: score.resource, label: RESOURCES[score.resource].name, score }))
    : by === "worst" ? accuracy.worst.map((series) => ({ key: `${series.vm_id}/${series.resource}`, label: `${series.vm_name} · ${RESOURCES[series.resource].name}`, vm: series, score: series }))
    : accuracy[by].map((part) => ({ key: part.name, label: part.name || "none", score: resourceOf(part, resource) }));
  syncRows(table_.tBodies[0], rows.filter(({ score }) => score.pairs > 0), ({ key }) => `${by}/${key}`, (row, { label, vm, score }) => {
    const name = setCells(row, () => (vm ? vmLink(vm.vm_id, label, `?resource=${vm.resource}`) : el("span", {})), scoreCells(score));
    name.textContent = label;
  }, "Nothing scored yet: a forecast is scored when the bucket it spoke of has closed.");
}
function showModels(table_, accuracy, resource) {
  const scored = accuracy.models.map((part) => ({ name: part.name, score: resourceOf(part, resource) })).filter(({ score }) => score.pairs > 0);
  const all = scored.reduce((sum, { score }) => sum + score.pairs, 0);
  scored.sort((a, b) => b.score.pairs - a.score.pairs || (a.name < b.name ? -1 : 1));
  syncRows(table_.tBodies[0], scored, ({ name }) => name, (row, { name, score }) => {
    setCells(row, () => document.createTextNode(name), [cell(meter(score.pairs, all, percent(score.pairs / all))), num(number(score.to_naive, 2)), num(percent(score.coverage_80))]);
  }, "Nothing scored yet.");
}
function showDrift(table_, day, hour) {
  const rows = day.fleet.filter((score) => score.pairs > 0).map((score) => ({ long: score, short: resourceOf({ resources: hour.fleet }, score.resource) }));
  syncRows(table_.tBodies[0], rows, ({ long }) => long.resource, (row, { long, short }) => {
    const off = known(long.coverage_80) && known(short.coverage_80) && Math.abs(short.coverage_80 - long.coverage_80) >= DRIFT;
    const judgement = !known(short.coverage_80) ? "nothing scored in the last hour" : short.to_naive > 1 ? "off: worse than the last value" : off ? "off: coverage has moved" : Math.abs(short.coverage_80 - MEANT) >= 2 * DRIFT ? `steady, but ${percent(short.coverage_80)} where 80 % is meant` : "steady";
    setCells(row, () => document.createTextNode(RESOURCES[long.resource].name), [num(percent(long.coverage_80)), num(percent(short.coverage_80)), num(number(long.to_naive, 2)), num(number(short.to_naive, 2)), cell(judgement, judgement.startsWith("off") ? "wrong wrap" : "wrap")]);
  }, "Nothing scored yet.");
}
