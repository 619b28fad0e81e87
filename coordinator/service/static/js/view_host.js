// One host: what it has, what is promised of it, what is coming, its mode and kill switch, its VMs and steps.
import { Refused, read, readOr } from "./api.js";
import { cell, el, fact, link, meter, num, panel, scroll, setCells, syncRows, table, vmLink } from "./dom.js";
import { clockNow, stamp } from "./freshness.js";
import { confirmed, orderButton } from "./orders.js";
import { may } from "./session.js";
import { STEP_HEADS, aliveBadges, modeBadges, showSteps } from "./tables.js";
import { RESOURCES, amount, clock, inUnit, known, minute, number, percent, span } from "./units.js";
import { stateBadges } from "./view_vms.js";

const MODES = ["off", "observe", "reactive", "predictive"];
const MEANS = {
  off: "nothing is measured or changed", observe: "everything is measured and planned, nothing is changed",
  reactive: "local rules follow the use of the moment", predictive: "plans of the coordinator are carried out, with the local rules beside them",
};

export const hostView = { title: "Host", mount };

function mount(root, { id, turn }) {
  const path = encodeURIComponent(id);
  const host = panel("host", "State");
  const orders = panel("orders", "Mode and kill switch");
  const load = panel("load", "Load ahead");
  const loadTable = table("load", "load of the host within the hour", ["Resource", "Committed", ["Highest within the hour, with margin", "", "mean and margin of the sum of its VMs in the fullest 5-minute step; the tick is the mean"], ["At", "num"], ["In 60 min", "num"]]);
  const vms = panel("host-vms", "VMs", link(`#/vms?host=${path}`, "with demand and allocation"));
  const vmTable = table("host-vms", "VMs of the host", ["VM", "Priority", "State", ["Violation min", "num"]]);
  const steps = panel("steps", "Steps");
  const stepTable = table("steps", "newest steps on this host", STEP_HEADS);
  load.body.append(scroll("load ahead", "", loadTable));
  vms.body.append(scroll("VMs of the host", "mid", vmTable));
  steps.body.append(scroll("steps", "mid", stepTable));
  root.append(el("div", { class: "columns" }, el("div", {}, host.root, load.root, vms.root), el("div", {}, orders.root, steps.root)));

  let shownOrders = "";
  return async () => {
    let found = null;
    try {
      found = await read(`hosts/${path}`);
    } catch (error) {
      if (!(error instanceof Refused) || ![403, 404].includes(error.status)) throw error;
      host.body.replaceChildren(el("p", { class: "note" }, `Not shown: ${error.message}`));
      return;
    }
    showHost(host, found.data);
    stamp(host, { at: found.at, made: found.data.last_seen_s });
    const key = `${found.data.mode} ${found.data.mode_ordered} ${found.data.mode_pinned} ${found.data.paused} ${found.data.paused_by} ${may("operator")}`;
    if (key !== shownOrders) { // not anew each turn: a choice that is being made must stay
      showOrders(orders, found.data, turn);
      shownOrders = key;
    }
    stamp(orders, { at: found.at });
    const [sums, page, outcomes] = await Promise.all([readOr("aggregates?limit=1000&kind=host", 10000), readOr(`vms?limit=500&host=${path}`, 1000), read("outcomes?limit=1000", 5000)]);
    showLoad(loadTable, found.data, sums ? sums.data.items.find((group) => group.name === id) : null);
    stamp(load, { at: sums ? sums.at : found.at, made: sums ? sums.data.issued_s : null, everyMs: 10000 });
    vms.count.textContent = String(found.data.vm_ids.length);
    syncRows(vmTable.tBodies[0], page ? page.data.items : [], (vm) => vm.id, (row, vm) => {
      setCells(row, () => vmLink(vm.id, vm.name), [cell(vm.priority), cell(stateBadges(vm)), num(number(vm.violation_minutes, 1))]);
    }, "No VM here.");
    stamp(vms, { at: page ? page.at : found.at });
    showSteps(stepTable, outcomes.data.filter((entry) => entry.host_id === id).slice(0, 60), "No step on this host among the fleet's newest 1,000.");
    stamp(steps, { at: outcomes.at, everyMs: 5000 });
  };
}

function showHost(panel_, host) {
  const heardAgo = known(host.last_seen_s) && clockNow() !== null ? span(clockNow() - host.last_seen_s) : null;
  const { capacity } = host;
  panel_.root.classList.toggle("silent", !host.alive);
  panel_.body.replaceChildren(el("p", { class: "note" }, modeBadges(host), " ", aliveBadges(host)),
    el("dl", { class: "sheet" }, fact("Heard last", clock(host.last_seen_s), heardAgo ? `${heardAgo} ago` : ""),
      fact("CPU in use", host.alive ? inUnit(host.cpu_used_millicores, 1e-3) : "?", `of ${number(capacity.cpu_millicores / 1000)} cores`), fact("Memory available", host.alive ? inUnit(host.memory_available_bytes, 2 ** -30) : "?", `of ${number(capacity.memory_bytes / 2 ** 30)} GiB`),
      fact("CPU that may be promised", number(capacity.cpu_commit_millicores / 1000), "cores"), fact("Memory that may be promised", number(capacity.memory_commit_bytes / 2 ** 30), "GiB"),
      fact("Spool", known(host.spool_frames) ? `${host.spool_frames} frames` : "?", host.spool_dropped ? `${host.spool_dropped} lost` : ""), fact("Hypervisor", host.hypervisor || "?"), fact("Agent", host.agent_version || "?"),
      known(host.clock_offset_s) ? fact("Clock offset", `${number(host.clock_offset_s * 1000, 0)} ms`, "positive = ahead of the coordinator's") : null));
}
function showLoad(table_, host, sums) {
  const committed = { cpu_millicores: [host.committed.cpu_millicores, host.capacity.cpu_commit_millicores], memory_bytes: [host.committed.memory_bytes, host.capacity.memory_commit_bytes] };
  const loads = host.load.length ? host.load : Object.keys(committed).map((resource) => ({ resource, capacity: null, mean: null, margin: null, step_s: null }));
  syncRows(table_.tBodies[0], loads, (load) => load.resource, (row, { resource, capacity, mean, margin, step_s }) => {
    const [used, limit] = committed[resource] || [null, null];
    const top = known(mean) ? mean + (margin || 0) : null;
    const sum = sums ? sums.resources.find((entry) => entry.resource === resource) : null;
    setCells(row, () => document.createTextNode(RESOURCES[resource].name), [
      cell(limit === null ? "–" : meter(used, limit, `${inUnit(used, RESOURCES[resource].scale)} / ${amount(limit, resource)}`)),
      cell(top === null ? "not known yet" : meter(top, capacity, `${inUnit(top, RESOURCES[resource].scale)} / ${amount(capacity, resource)} (${percent(top / capacity)})`, "", mean)),
      num(known(step_s) ? minute(step_s) : "–"), num(sum ? amount(sum.mean_hour, resource) : "–"),
    ]);
  }, "No load is known.");
}

function showOrders(panel_, host, turn) {
  const pin = host.mode_pinned
    ? `Pinned to ${host.mode} on the host itself. The pin wins: an order of the API is refused until it is lifted there (tidegate-agent mode unpin).`
    : `Not pinned on the host: an order of the API holds until the next one, or until somebody pins a mode on the host.`;
  const choice = el("select", { id: "mode", "aria-label": "mode to order" }, MODES.map((mode) => el("option", { value: mode }, mode)));
  choice.value = host.mode;
  const order = async () => {
    const wanted = choice.value;
    const done = await confirmed(`Order ${host.id} into ${wanted}?`, [`Now: ${host.mode}. ${wanted}: ${MEANS[wanted]}.`, `${host.vm_ids.length} VMs are on it.`, pin], `Order ${wanted}`, "PUT", `hosts/${encodeURIComponent(host.id)}/mode`, { mode: wanted });
    if (done) turn();
  };
  const on = host.paused;
  const pause = async () => {
    const told = on ? ["Its agent changes VMs again, as its mode says. A switch that its owner holds on the host stays."] : ["Its agent changes nothing from then on, whatever its mode or pin. Limits stay as they are."];
    const done = await confirmed(`${on ? "Release" : "Throw"} the kill switch of ${host.id}?`, told, on ? "Release it" : "Throw it", "PUT", `hosts/${encodeURIComponent(host.id)}/pause`, { paused: !on });
    if (done) turn();
  };
  const held = host.paused_by.length ? `Held by ${host.paused_by.join(", ")}: nothing is changed here.` : host.paused ? "Thrown by the API, not yet confirmed by the host." : "Not thrown.";
  panel_.body.replaceChildren(
    el("dl", { class: "sheet" }, fact("Mode in force", host.mode, MEANS[host.mode]), fact("Ordered by the API", host.mode_ordered || "nothing"), fact("Kill switch", host.paused || host.paused_by.length ? "ON" : "off", held, host.paused || host.paused_by.length ? "bad" : "")),
    el("p", { class: "note", id: "pin" }, pin),
    el("p", { class: "note choices" }, may("operator") ? choice : null, orderButton("Order this mode…", order, "Log in to change the mode"), may("operator") ? orderButton(on ? "Release the kill switch…" : "Throw the kill switch…", pause) : null));
}
