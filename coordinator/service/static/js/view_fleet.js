// The fleet at a glance: what is wrong, hosts now and in an hour, modes, the last cycle, hosts and sums.
import { offers, readOr, read } from "./api.js";
import { badge, cell, el, hostLink, link, meter, num, panel, pick, scroll, setCells, sub, syncRows, table } from "./dom.js";
import { stamp } from "./freshness.js";
import { heatMap } from "./heat.js";
import { APPLIED, STEP_HEADS, aliveBadges, modeBadges, showSteps } from "./tables.js";
import { RESOURCES, inUnit, known, number, percent, resourceOf, words } from "./units.js";
import { whatIsWrong } from "./wrong.js";

const SHOWN = 60; // hosts in the table at once: more rows come at the press of a button
const MANY = 200; // hosts above which their answer is a megabyte, and read less often
const SLOW_MS = 10000;

export const fleetView = { title: "Fleet", mount };

function mount(root, { turn }) {
  const state = { resource: "cpu_millicores", ahead: "hour", kind: "", steps: "", find: "", rows: SHOWN, many: false, alerts: [] };
  const change = (key) => (value) => { state[key] = value; turn(); };
  const wrong = panel("wrong", "Needs attention");
  const heat = panel("heat", "Hosts, now and ahead", pick("heat-resource", "Resource", Object.fromEntries(Object.entries(RESOURCES).map(([key, { name }]) => [key, name])), state.resource, change("resource")),
    pick("heat-ahead", "Ahead", { hour: "in 60 minutes", highest: "highest within the hour" }, state.ahead, change("ahead")));
  const [now, ahead] = [heatMap("heat-now", "Now"), heatMap("heat-next", "In 60 minutes")];
  heat.body.append(el("div", { class: "heats" }, now.box, ahead.box));
  const scores = panel("scores", "Control modes");
  const cycle = panel("cycle", "Last decision cycle");
  const find = el("input", { type: "search", id: "host-find", size: 12, oninput: () => { state.find = find.value; turn(); } });
  const hosts = panel("hosts", "Hosts", el("label", { class: "pick" }, "Find ", find));
  const hostTable = table("hosts", "hosts", ["Host", "Mode", "State", "CPU committed", "Memory committed", ["VMs", "num"], ["Spool", "num"]]);
  const more = el("button", { type: "button", class: "quiet", id: "hosts-more", hidden: true, onclick: () => { state.rows += 200; turn(); } }, "Show more");
  hosts.body.append(scroll("hosts", "tall", hostTable), more);
  const groups = panel("groups", "Coming hour", pick("kind", "Sums of", { "": "all", host: "hosts", client: "clients", app: "applications" }, "", change("kind")));
  const groupTable = table("groups", "sums of the coming hour", ["Sum of", ["VMs", "num"],
    ["CPU cores, now → in an hour", "", "mean (80 % band); the tick: the highest of the hour stays below it 19 times in 20"], ["Memory GiB, now → in an hour", "", "mean (80 % band); the tick: the highest of the hour stays below it 19 times in 20"]]);
  groups.body.append(scroll("sums of the coming hour", "mid", groupTable));
  const steps = panel("steps", "Steps", pick("steps-filter", "Show", { "": "all", applied: "applied", refused: "refused or failed" }, "", change("steps")));
  const stepTable = table("steps", "newest steps of the fleet", STEP_HEADS);
  steps.body.append(scroll("newest steps", "mid", stepTable));
  root.append(wrong.root, heat.root, el("div", { class: "columns" }, el("div", {}, hosts.root, groups.root), el("div", {}, scores.root, cycle.root, steps.root)));

  return async (fleetAsked, painted) => {
    const slow = state.many ? SLOW_MS : 1000;
    const fast = Promise.all([readOr("hosts", slow), readOr("sizing?limit=20", slow), fleetAsked]);
    const rest = Promise.all([readOr(`aggregates?limit=1000&kind=host`, slow), readOr(`aggregates?limit=200${state.kind ? `&kind=${state.kind}` : ""}`, slow), readOr("scores", 1000), read("outcomes?limit=60", 1000)]);
    rest.catch(() => null); // awaited below; it must not go unhandled where the first fails before
    const [hostAnswer, sizing, fleet] = await fast;
    if (!hostAnswer || !fleet) {
      wrong.body.replaceChildren(el("p", { class: "note" }, "Your role sees no fleet. ", link("#/vms", "Your VMs")));
      return;
    }
    const known_ = hostAnswer.data;
    state.many = known_.length > MANY;
    const everyMs = state.many ? SLOW_MS : 2000;
    const showAttention = () => showWrong(wrong, { fleet: fleet.data, hosts: known_, sizing: sizing && sizing.data, alerts: state.alerts });
    showAttention();
    stamp(wrong, { at: hostAnswer.at, everyMs });
    showCycle(cycle, fleet.data);
    stamp(cycle, { at: fleet.at, made: fleet.data.last_cycle_s });
    showHosts(hostTable, hosts, more, known_, state);
    stamp(hosts, { at: hostAnswer.at, everyMs });
    const [sums, shown, scored, outcomes] = await rest;
    showHeat({ heat, now, ahead }, known_, sums.data.items, state);
    stamp(heat, { at: sums.at, made: sums.data.issued_s, everyMs });
    painted();
    showGroups(groupTable, groups, shown.data, new Map(known_.map((host) => [host.id, host.capacity])));
    stamp(groups, { at: shown.at, made: shown.data.issued_s, everyMs });
    showScores(scores, scored.data, known_);
    stamp(scores, { at: scored.at });
    const entries = outcomes.data.filter(({ outcome }) => !state.steps || APPLIED.has(outcome.state) === (state.steps === "applied"));
    steps.count.textContent = `newest ${entries.length}`;
    showSteps(stepTable, entries);
    stamp(steps, { at: outcomes.at });
    if (await offers("/alerts")) { // last: what is offered may take a moment to learn, and the first paint must not wait for it
      const alerts = await readOr("alerts?status=firing&limit=50", slow);
      state.alerts = alerts ? alerts.data.items : [];
      showAttention();
    }
  };
}

function showWrong(panel_, told) {
  const found = whatIsWrong(told);
  panel_.count.textContent = found.length ? String(found.length) : "";
  panel_.root.classList.toggle("calm", !found.length);
  const items = found.map(({ weight, word, text, href }) => el("li", { class: weight > 1 ? "bad" : "watch" }, badge(word, weight > 1 ? "full" : "reactive"), " ", link(href, text)));
  panel_.body.replaceChildren(el("ul", { class: "plain", id: "wrong" }, items.length ? items : el("li", {}, badge("fine", "alive"), " No host is silent or paused, no shortage is ahead, no budget burns too fast.")));
}

// Share of the host's capacity that is used of a resource: now, and ahead by what was asked for. Unknown is null.
export function shares(host, sums, resource, ahead) {
  const sum = sums ? resourceOf(sums, resource) : {};
  const load = host.load.find((entry) => entry.resource === resource) || {};
  const { capacity } = host;
  const all = { cpu_millicores: capacity.cpu_millicores, memory_bytes: capacity.memory_bytes, disk_bytes_per_s: load.capacity, net_rx_bits_per_s: capacity.net_bits_per_s, net_tx_bits_per_s: capacity.net_bits_per_s }[resource];
  const of = (value) => (known(value) && all > 0 ? value / all : null);
  const used = resource === "cpu_millicores" ? host.cpu_used_millicores : resource === "memory_bytes" && known(host.memory_available_bytes) ? capacity.memory_bytes - host.memory_available_bytes : sum.mean_now;
  const highest = known(load.mean) ? load.mean + (load.margin || 0) : sum.highest;
  return { now: of(used), ahead: of(ahead === "hour" ? sum.mean_hour : highest) };
}
function showHeat({ heat, now, ahead }, hosts, sums, state) {
  const byHost = new Map(sums.map((group) => [group.name, group]));
  const both = hosts.map((host) => ({ id: host.id, silent: !host.alive, ...shares(host, byHost.get(host.id), state.resource, state.ahead) }));
  heat.count.textContent = `${hosts.length} hosts · share of capacity`;
  ahead.box.querySelector("h4").textContent = state.ahead === "hour" ? "In 60 minutes, mean" : "Highest within the hour, with its margin";
  now.show(both.map((cell_) => ({ id: cell_.id, silent: cell_.silent, share: cell_.now })));
  ahead.show(both.map((cell_) => ({ id: cell_.id, silent: false, share: cell_.ahead })));
}

function showScores(panel_, scores, hosts) {
  const counts = new Map();
  for (const host of hosts) counts.set(host.mode, (counts.get(host.mode) || 0) + 1);
  panel_.count.textContent = [...counts].map(([mode, count]) => `${count} ${mode}`).join(", ");
  const reactive = scores.modes.find((score) => score.mode === "reactive");
  const item = (name, value, title) => el("div", { title: title || "" }, el("dt", {}, name), el("dd", {}, value));
  const cards = scores.modes.map((score) => {
    let delta = null;
    if (score.mode === "predictive" && reactive && reactive.violation_minutes > 0 && reactive.vms && score.vms && score.violation_minutes !== null) {
      const by = score.violation_minutes / score.vms / (reactive.violation_minutes / reactive.vms) - 1;
      delta = el("span", { class: `delta ${by <= 0 ? "good" : "worse"}` }, `${by <= 0 ? "−" : "+"}${number(Math.abs(by) * 100, 0)} % per VM against reactive`);
    }
    const skill = score.pinball === null || !score.naive_pinball ? "–" : `${number(score.pinball / score.naive_pinball, 2)} × Naive`;
    return el("article", { class: "card" }, el("h4", {}, badge(score.mode), ` ${score.hosts} hosts, ${score.vms} VMs`),
      el("div", { class: "top" }, el("span", { class: "big" }, number(score.violation_minutes, 0)), el("span", { class: "muted" }, "violation minutes"), delta),
      el("dl", {}, item("allocation / use", number(score.allocation_over_use, 2), "mean allocation over mean demand"), item("depth", percent(score.violation_depth), "mean share of demand not served while in violation"),
        item("applied", number(score.steps_applied, 0)), item("refused", number(score.steps_refused, 0)), item("forecast loss", skill, "pinball loss of the forecasts against Naive; below 1 is better")));
  });
  panel_.body.replaceChildren(el("div", { class: "cards", id: "scores" }, cards.length ? cards : el("p", { class: "note" }, "No scores yet: they need one closed 5-minute bucket.")));
}
function showCycle(panel_, fleet) {
  panel_.count.textContent = fleet.last_cycle_wall_ms === null ? "none yet" : `${number(fleet.cycle, 0)}: ${number(fleet.last_cycle_wall_ms)} ms`;
  const bars = fleet.stages.map((stage, i) => {
    const bar = el("i", { class: `s${i % 8}`, title: `${stage.stage}: ${number(stage.wall_ms)} ms` });
    bar.style.flexGrow = String(Math.max(stage.wall_ms, 0.01));
    return bar;
  });
  panel_.body.replaceChildren(el("div", { class: "stages", role: "img", "aria-label": "durations of the stages" }, bars),
    el("ul", { class: "stage-list" }, fleet.stages.map((stage, i) => el("li", {}, el("i", { class: `s${i % 8}` }), `${stage.stage} `, el("b", {}, number(stage.wall_ms)), " ms"))));
}

function showHosts(table_, panel_, more, hosts, state) {
  const weight = (host) => (host.alive ? 0 : 4) + (host.paused || host.paused_by.length ? 2 : 0) + (host.counts_as_full ? 1 : 0);
  const found = hosts.filter((host) => host.id.includes(state.find)).sort((a, b) => weight(b) - weight(a) || (a.id < b.id ? -1 : 1));
  const shown = found.slice(0, state.rows);
  panel_.count.textContent = shown.length < hosts.length ? `${shown.length} of ${hosts.length}` : String(hosts.length);
  more.hidden = shown.length === found.length;
  syncRows(table_.tBodies[0], shown, (host) => host.id, (row, host) => {
    row.classList.toggle("silent", !host.alive);
    const { capacity, committed } = host;
    const sums = (used, limit, scale, unit) => cell(meter(used, limit, `${inUnit(used, scale)} / ${number(limit * scale)} ${unit}`));
    const spool = host.spool_frames === null ? null : `${host.spool_frames}${host.spool_dropped ? ` (${host.spool_dropped} lost)` : ""}`;
    setCells(row, () => hostLink(host.id), [cell(modeBadges(host)), cell(aliveBadges(host), "wrap"),
      sums(committed.cpu_millicores, capacity.cpu_commit_millicores, 1e-3, "cores"), sums(committed.memory_bytes, capacity.memory_commit_bytes, 2 ** -30, "GiB"),
      num(String(host.vm_ids.length)), num(spool)]);
  }, state.find ? "No host of this name." : "No host has registered yet.");
}

function sumCell(outlook, limit) {
  const { scale, unit } = RESOURCES[outlook.resource];
  const text = `${inUnit(outlook.mean_now, scale)} → ${inUnit(outlook.mean_hour, scale)} (${inUnit(outlook.low_hour, scale)} to ${inUnit(outlook.high_hour, scale)})`;
  const found = cell(meter(outlook.mean_now, limit, text, "", outlook.highest));
  found.title = `the highest of the hour stays below ${inUnit(outlook.highest, scale)} ${unit} 19 times in 20; the 80 % band covered ${percent(outlook.coverage)} of late`;
  return found;
}
function showGroups(table_, panel_, groups, capacities) {
  panel_.count.textContent = groups.items.length < groups.total ? `first ${groups.items.length} of ${groups.total}` : String(groups.total);
  syncRows(table_.tBodies[0], groups.items.slice(0, SHOWN), (group) => `${group.kind}/${group.name}`, (row, group) => {
    const [cpu, memory] = ["cpu_millicores", "memory_bytes"].map((name) => resourceOf(group, name));
    const capacity = group.kind === "host" ? capacities.get(group.name) : null;
    const name = setCells(row, () => el("span", {}), [num(String(group.members)), sumCell(cpu, capacity ? capacity.cpu_millicores : null), sumCell(memory, capacity ? capacity.memory_bytes : null)]);
    const why = cpu.reason || (cpu.known < 1 ? `${percent(cpu.known)} of VMs` : "");
    name.replaceChildren(el("b", {}, group.name || "whole fleet"), group.kind === "fleet" ? "" : sub(group.kind), why ? badge(words(why), "cold") : "");
  }, "No sums yet: they come with the first forecast.");
}
