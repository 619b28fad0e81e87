// One VM: what it needs, has, used to need and will need; what was changed and why; how good its forecasts are; why it is where it is.
import { Refused, read, readOr } from "./api.js";
import { badge, cell, el, fact, hostLink, link, num, panel, pick, scroll, setCells, syncRows, table } from "./dom.js";
import { chart } from "./chart.js";
import { stamp } from "./freshness.js";
import { APPLIED, SCORE_HEADS, STEP_HEADS, scoreCells, showSteps } from "./tables.js";
import { LEVERS, RESOURCES, change, clock, inUnit, known, minute, number, percent, resourceOf, words } from "./units.js";
import { showOrders } from "./vm_orders.js";
import { receiptsPanel, toldPanel } from "./vm_why.js";
import { whyNotPanel } from "./view_plan.js";
import { stateBadges } from "./view_vms.js";

const HOURS = { 3: "3 h", 6: "6 h", 24: "24 h", 72: "3 d", 168: "7 d" };

export const vmView = { title: "VM", mount };

function mount(root, { id, query, turn }) {
  const path = `vms/${encodeURIComponent(id)}`;
  const state = { resource: RESOURCES[query.get("resource")] ? query.get("resource") : "cpu_millicores", hours: HOURS[query.get("hours")] ? query.get("hours") : "6", drawn: "" };
  const choose = (key) => (value) => {
    state[key] = value;
    history.replaceState(null, "", `#/vm/${encodeURIComponent(id)}?resource=${state.resource}&hours=${state.hours}`);
    turn();
  };
  const graph = panel("chart", "Demand, allocation and forecast", pick("resource", "Resource", Object.fromEntries(Object.entries(RESOURCES).map(([key, { name }]) => [key, name])), state.resource, choose("resource")), pick("hours", "Past", HOURS, state.hours, choose("hours")));
  const drawing = el("div", { id: "chart" });
  const note = el("p", { class: "muted note", id: "chart-note" });
  graph.body.append(drawing, note);
  const now = panel("now", "Now");
  const nowTable = table("resources", "resources of the VM now", ["Resource", ["Demand", "num"], ["Largest 5 s", "num"], ["Allocation", "num"], "Censored", "Control", "Model"]);
  const sheet = el("dl", { class: "sheet" });
  now.body.append(sheet, scroll("resources now", "", nowTable));
  const ahead = panel("outlook", "Next six hours");
  const aheadTable = table("outlook", "outlook of the VM, the next six hours", ["Half hour", ["Usual", "num", "half of the time it is less"], ["Mean, 80 %", "num"], ["Peak below", "num", "the largest 5-second demand stays below it in 95 of 100"]]);
  ahead.body.append(scroll("next six hours", "mid", aheadTable));
  const scores = panel("vm-accuracy", "Accuracy of its forecasts");
  const scoreTable = table("vm-accuracy", "accuracy of the forecasts of the VM", ["Minutes ahead", ...SCORE_HEADS]);
  scores.body.append(scroll("accuracy", "", scoreTable));
  const steps = panel("steps", "Steps");
  const stepTable = table("steps", "newest steps of the VM", STEP_HEADS);
  steps.body.append(scroll("steps", "mid", stepTable));
  const told = toldPanel(id);
  const receipts = receiptsPanel(id);
  const adjust = panel("adjust", "Adjust");
  const whyNot = whyNotPanel(id);
  root.append(graph.root, el("div", { class: "columns" }, el("div", {}, now.root, told.root, receipts.root, whyNot.root), el("div", {}, steps.root, scores.root, ahead.root, adjust.root)));
  showOrders(adjust, id, turn);

  return async (fleetAsked, painted) => {
    const { resource, hours } = state;
    let found;
    try {
      found = await Promise.all([read(path), read(`${path}/history?hours=${hours}&resource=${resource}`, 1000), read(`${path}/forecast?horizon_minutes=60`), read(`outcomes?limit=100&vm=${encodeURIComponent(id)}`)]);
    } catch (error) {
      if (!(error instanceof Refused) || ![403, 404].includes(error.status)) throw error;
      note.textContent = `Not shown: ${error.message}`;
      return;
    }
    const [vm, past, forecast, outcomes] = found;
    if (resource !== state.resource || hours !== state.hours) return; // the choice changed meanwhile; another turn is asked for
    showNow(now, sheet, nowTable, vm.data);
    stamp(now, { at: vm.at });
    root.querySelector("h2").textContent = `VM ${vm.data.name}`;
    showChart(graph, drawing, note, { past: past.data, forecast: forecast.data, outcomes: outcomes.data }, state);
    stamp(graph, { at: Math.min(past.at, forecast.at), made: forecast.data.issued_s });
    showSteps(stepTable, outcomes.data);
    steps.count.textContent = `newest ${outcomes.data.length}`;
    stamp(steps, { at: outcomes.at });
    painted();
    await Promise.all([told.show(state.resource), receipts.show()]);
    const [outlook, accuracy] = await Promise.all([readOr(`${path}/outlook`, 10000), readOr(`${path}/accuracy`, 10000)]);
    if (outlook) showOutlook(aheadTable, outlook.data, resource, forecast.data.issued_s || 0);
    if (outlook) stamp(ahead, { at: outlook.at, everyMs: 10000 });
    if (accuracy) showAccuracy(scoreTable, accuracy.data, resource);
    if (accuracy) stamp(scores, { at: accuracy.at, everyMs: 10000 });
    whyNot.show((await fleetAsked) !== null);
  };
}

function showNow(panel_, sheet, table_, vm) {
  panel_.count.replaceChildren(stateBadges(vm));
  const cannot = Object.entries(vm.capabilities).filter(([, why]) => why !== null);
  sheet.replaceChildren(fact("Host", hostLink(vm.host_id)), fact("Mode", badge(vm.mode), vm.mode_reason || ""), fact("Client", vm.client ? link(`#/vms?client=${encodeURIComponent(vm.client)}`, vm.client) : "none"), fact("Application", vm.application || "none"),
    fact("Priority", vm.priority), fact("Violation minutes", number(vm.violation_minutes, 1), "demand above what was granted"), fact("At most", `${vm.vcpus_max} vCPUs`, `${number(vm.memory_max_bytes / 2 ** 30)} GiB`),
    ...vm.signals.map((signal) => fact(words(signal.signal), number(signal.value), `told ${clock(signal.time_s)}`)),
    fact("Cannot", cannot.length ? el("details", {}, el("summary", {}, `${cannot.length} levers`), el("ul", { class: "told" }, cannot.map(([lever, why]) => el("li", {}, `${words(lever)}: ${why}`)))) : "nothing is closed to it"));
  syncRows(table_.tBodies[0], vm.resources, (entry) => entry.resource, (row, entry) => {
    const { scale, unit } = RESOURCES[entry.resource];
    const model = entry.reason ? badge(words(entry.reason), "cold", "no model of its own") : entry.model || "–";
    setCells(row, () => document.createTextNode(RESOURCES[entry.resource].name), [num(`${inUnit(entry.demand, scale)} ${unit}`), num(inUnit(entry.peak, scale)), num(inUnit(entry.allocation, scale)),
      cell(entry.censored > 0 ? badge(`${percent(entry.censored)} of samples`, "censored") : known(entry.censored) ? "no" : "?"), cell(badge(entry.control)), cell(model, "small")]);
  }, "No resource is known.");
}

function showChart(panel_, drawing, note, { past, forecast, outcomes }, state) {
  const { resource } = state;
  const key = `${resource}/${state.hours}/${forecast.issued_s}/${past.resources[0] ? past.resources[0].start_s.at(-1) : ""}/${outcomes.length ? outcomes[0].outcome.step.id : ""}`;
  panel_.count.textContent = RESOURCES[resource].name;
  const found = forecast.resources.find((entry) => entry.resource === resource);
  const how = found && (found.reason ? `No model of its own (${words(found.reason)}): wide prior.` : `Model ${found.model || "none"}; its 80 % band covered ${percent(found.coverage)} of late.`);
  note.textContent = `${how || "No forecast yet."} Behind the line: what was forecast ${past.lead_minutes} minutes before.`;
  if (key === state.drawn) return; // the same drawing stays, and with it the moment that is being read
  state.drawn = key;
  const steps = outcomes.filter(({ outcome }) => LEVERS[resource].includes(outcome.step.kind) && outcome.finished_ns).map(({ outcome }) => {
    const { step } = outcome;
    const mark = !APPLIED.has(outcome.state) ? "✕" : step.value > step.before || step.value === -1 ? "▲" : "▼";
    return { at_s: outcome.finished_ns / 1e9, mark, text: `${clock(outcome.finished_ns / 1e9)} ${change(step.kind, step.before, step.value)}: ${outcome.state}${outcome.code ? `, ${outcome.code}` : ""}` };
  });
  drawing.replaceChildren(chart({ past: past.resources[0] || null, ahead: { levels: forecast.levels, rows: found ? found.rows : [] }, steps, unit: RESOURCES[resource], leadMinutes: past.lead_minutes }));
}

function showOutlook(table_, ahead, resource, nowS) {
  const { scale, unit } = RESOURCES[resource];
  const found = ahead.resources.find((entry) => entry.resource === resource);
  const said = (quantiles, level) => inUnit(quantiles[ahead.levels.indexOf(level)], scale);
  const blocks = found ? found.blocks.filter((block) => block.start_s + 1800 > nowS) : []; // the newest outlook may be half an hour old
  syncRows(table_.tBodies[0], blocks, (block) => String(block.start_s), (row, block) => {
    const texts = [`${said(block.quantiles, 0.5)} ${unit}`, `${said(block.quantiles, 0.1)} – ${said(block.quantiles, 0.9)}`, said(block.peak_quantiles, 0.95)];
    setCells(row, () => document.createTextNode(minute(block.start_s)), texts.map((text) => num(text)));
  }, "No outlook yet: it comes each half hour, once two hours are known.");
}
function showAccuracy(table_, accuracy, resource) {
  const scored = accuracy.horizons.map((part) => ({ name: part.name, score: resourceOf(part, resource) })).filter(({ score }) => score.pairs > 0);
  syncRows(table_.tBodies[0], scored, ({ name }) => name, (row, { name, score }) => {
    setCells(row, () => document.createTextNode(name), scoreCells(score));
  }, "No forecast of this VM was scored yet.");
}
