// Every VM with what it needs and has, most violation minutes first.
import { readOr, read } from "./api.js";
import { badge, cell, el, hostLink, link, meter, num, panel, pick, scroll, setCells, sub, syncRows, table, vmLink } from "./dom.js";
import { stamp } from "./freshness.js";
import { RESOURCES, inUnit, number, percent, resourceOf, words } from "./units.js";

const PAGE = 500; // VMs shown at once; a host or client narrows a large fleet
const use = (vm, name) => { const { demand, allocation } = resourceOf(vm, name); return demand > 0 && allocation > 0 ? demand / allocation : null; };
const HINT = "demand / allocation in force; the tick is the largest 5-second demand";
const COLUMNS = [
  { key: "name", title: "VM", of: (vm) => vm.name },
  { key: "violation", title: "Violation min", of: (vm) => vm.violation_minutes, num: true },
  { key: "cpu", title: "CPU, cores", hint: HINT, of: (vm) => use(vm, "cpu_millicores"), num: true },
  { key: "memory", title: "Memory, GiB", hint: HINT, of: (vm) => use(vm, "memory_bytes"), num: true },
  { key: "censored", title: "State", of: (vm) => Math.max(0, ...vm.resources.map((entry) => entry.censored || 0)), num: true },
  { key: "model", title: "CPU model", of: (vm) => resourceOf(vm, "cpu_millicores").model || "" },
];

export const vmsView = { title: "VMs", mount };

function mount(root, { query, turn }) {
  const state = { host: query.get("host") || "", client: query.get("client") || "", key: "violation", down: true, pages: [null] };
  const vms = panel("vms", "Virtual machines");
  const hostFilter = pick("host-filter", "Host", { "": "all" }, "", (value) => { state.host = value; state.pages = [null]; turn(); });
  const back = el("button", { type: "button", class: "quiet", hidden: true, onclick: () => { state.pages.pop(); turn(); } }, "Previous");
  const next = el("button", { type: "button", class: "quiet", hidden: true, onclick: () => { state.pages.push(next.dataset.cursor); turn(); } }, "Next");
  vms.root.querySelector(".picks").append(hostFilter, ...(state.client ? [badge(`client ${state.client}`), link("#/vms", "all clients")] : []), back, next);
  const shown = table("vms", "virtual machines", []);
  vms.body.append(scroll("virtual machines", "", shown));
  root.append(vms.root);

  const sortHeads = () => {
    const heads = COLUMNS.map((column) => {
      const sort = () => { state.down = state.key === column.key ? !state.down : Boolean(column.num); state.key = column.key; sortHeads(); turn(); };
      const head = el("th", { scope: "col", class: column.key === "violation" ? "num" : "", title: column.hint || "" }, el("button", { type: "button", onclick: sort }, column.title));
      if (column.key === state.key) head.setAttribute("aria-sort", state.down ? "descending" : "ascending");
      return head;
    });
    const row = shown.tHead.rows[0];
    const at = [...row.cells].findIndex((head) => head.contains(document.activeElement));
    row.replaceChildren(...heads);
    if (at >= 0) heads[at].firstChild.focus();
  };
  sortHeads();

  return async () => {
    const cursor = state.pages[state.pages.length - 1];
    const filter = `${state.host ? `&host=${encodeURIComponent(state.host)}` : ""}${state.client ? `&client=${encodeURIComponent(state.client)}` : ""}${cursor ? `&cursor=${encodeURIComponent(cursor)}` : ""}`;
    const [page, hosts] = await Promise.all([read(`vms?limit=${PAGE}${filter}`, 1000), readOr("hosts", 10000)]);
    const { items, total, next_cursor } = page.data;
    const select = hostFilter.querySelector("select");
    const known = new Set([...select.options].map((option) => option.value));
    for (const { id } of hosts ? hosts.data : []) if (!known.has(id)) select.add(new Option(id, id));
    if (state.host && !known.has(state.host) && ![...select.options].some((option) => option.value === state.host)) select.add(new Option(state.host, state.host));
    select.value = state.host;
    vms.count.textContent = items.length < total ? `${items.length} of ${total}, by id from ${items.length ? items[0].id : "–"}` : String(total);
    back.hidden = state.pages.length === 1;
    next.hidden = next_cursor === null;
    next.dataset.cursor = next_cursor || "";
    showVms(shown, sorted(items, state));
    stamp(vms, { at: page.at });
  };
}
function sorted(items, { key, down }) {
  const { of } = COLUMNS.find((entry) => entry.key === key);
  return [...items].sort((a, b) => {
    const [x, y] = [of(a), of(b)];
    if (x === y) return a.id < b.id ? -1 : 1;
    if (x === null || y === null) return x === null ? 1 : -1; // unknown last, whichever way
    return (x < y ? -1 : 1) * (down ? -1 : 1);
  });
}
function demandCell(vm, name) {
  const { scale } = RESOURCES[name];
  const { demand, allocation, peak } = resourceOf(vm, name);
  return cell(meter(demand ?? null, allocation, `${inUnit(demand, scale)} / ${inUnit(allocation, scale)}`, "vm", peak));
}
export function stateBadges(vm) {
  const capped = vm.resources.filter((entry) => entry.censored > 0);
  return el("span", {}, vm.running ? null : badge("stopped"), vm.policy.excluded ? badge("excluded", "", "its policy opts it out") : null,
    vm.mode_reason ? badge(vm.mode, vm.mode, vm.mode_reason) : null,
    capped.length ? badge("censored", "censored", `ran into its limit: ${capped.map((entry) => `${RESOURCES[entry.resource].name} ${percent(entry.censored)} of samples`).join(", ")}`) : null);
}
function showVms(shown, items) {
  syncRows(shown.tBodies[0], items, (vm) => vm.id, (row, vm) => {
    const cpu = resourceOf(vm, "cpu_millicores");
    const model = cpu.reason ? badge(words(cpu.reason), "cold", "no model of its own") : cpu.model;
    const name = setCells(row, () => el("span", { class: "name" }, vmLink(vm.id, vm.name), sub("")), [
      num(number(vm.violation_minutes, 1)), demandCell(vm, "cpu_millicores"), demandCell(vm, "memory_bytes"), cell(stateBadges(vm)), cell(model, "small"),
    ]);
    name.lastChild.replaceChildren(hostLink(vm.host_id), ` · ${vm.priority}${vm.client ? ` · ${vm.client}` : ""}`);
    name.firstChild.textContent = vm.name;
  }, "No VM here.");
}
