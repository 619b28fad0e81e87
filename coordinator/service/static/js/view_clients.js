// Clients and what they are promised: error budgets now, and where the coordinator has them, clients, SLAs and compliance by the minute.
import { offers, readOr } from "./api.js";
import { badge, el, link, meter, panel, pick, scroll, table } from "./dom.js";
import { stamp } from "./freshness.js";
import { headsOf, showRows } from "./tables.js";
import { RESOURCES, amount, known, minute, number, percent, span, words } from "./units.js";

const EVERY_MS = 5000;
const LIMIT = 200;
const budgetWord = (budget) => (budget.spent >= 1 ? badge("spent", "full") : budget.burn_rate > 1 ? badge("burns too fast", "reactive") : badge("within", "alive"));
const BUDGETS = [
  { head: "Client", of: (budget) => (budget.client ? link(`#/vms?client=${encodeURIComponent(budget.client)}`, budget.client) : "none") }, { head: "Budget", num: true, hint: "share of its VMs' time that may be violated", of: (budget) => percent(budget.budget, 2) },
  { head: "Violated", num: true, of: (budget) => percent(budget.violated, 2) }, { head: "Burn rate", num: true, hint: "1 = used up just at the period's end", of: (budget) => `${number(budget.burn_rate, 2)} ×` },
  { head: "Spent of the period's budget", of: (budget) => meter(budget.spent, 1, percent(budget.spent)) }, { head: "State", of: budgetWord },
];
const LACKS = [
  { head: "Client", of: (lack) => lack.client || "none" }, { head: "Resource", of: (lack) => RESOURCES[lack.resource].name }, { head: "Missing", num: true, of: (lack) => amount(lack.missing, lack.resource) },
  { head: "Held by", of: (lack) => `${lack.cause} ${lack.where}` }, { head: "From to", of: (lack) => `${minute(lack.from_s)} – ${minute(lack.until_s)}` },
];
const CLIENTS = [
  { head: "Client", of: (client) => el("b", {}, client.id) }, { head: "Name", wrap: true, of: (client) => client.name }, { head: "Priority", of: (client) => client.priority || "as its VMs say" }, { head: "SLA", of: (client) => client.sla || "by priority" },
  { head: "VMs", num: true, of: (client) => link(`#/vms?client=${encodeURIComponent(client.id)}`, String(client.vms)) }, { head: "Contact", wrap: true, of: (client) => client.contact || "–" },
];
const promise = (objective) => `${words(objective.metric)} at most ${number(objective.threshold_permille / 10)} % for ${number(objective.share_permille / 10)} % of minutes in ${span(objective.period_s)}`;
const SLAS = [
  { head: "SLA", of: (sla) => el("b", {}, sla.id) }, { head: "Name", wrap: true, of: (sla) => sla.name }, { head: "Objectives", wrap: true, of: (sla) => el("ul", { class: "bare" }, sla.objectives.map((each) => el("li", {}, promise(each)))) },
  { head: "Clients", wrap: true, of: (sla) => sla.clients.join(", ") || "none" },
];
const STATE = { met: "alive", burning: "reactive", exhausted: "full", unknown: "cold" };
const STANDINGS = [
  { head: "Name", of: ({ item }) => el("b", {}, item.name || "none") }, { head: "Objective", of: ({ each }) => words(each.metric) }, { head: "State", of: ({ each }) => badge(words(each.state), STATE[each.state] || "") },
  { head: "Compliance", num: true, of: ({ each }) => percent(each.compliance, 3) }, { head: "At least", num: true, hint: "with every unknown minute taken as bad", of: ({ each }) => percent(each.at_least, 3) }, { head: "Promised", num: true, of: ({ each }) => percent(each.promised, 3) },
  { head: "Budget left", num: true, of: ({ each }) => `${number(each.remaining_minutes, 0)} of ${number(each.budget_minutes, 0)} min` },
  { head: "Bad / unknown min", num: true, of: ({ each }) => `${number(each.bad_minutes, 0)} / ${number(each.unknown_minutes, 0)}` },
  { head: "Burn", wrap: true, hint: "1 lasts just for the period", of: ({ each }) => each.burn.map((burn) => `${span(burn.window_s)}: ${known(burn.rate) ? `${number(burn.rate, 1)} ×` : "?"}`).join(", ") },
];

export const clientsView = { title: "Clients", mount };

function mount(root, { turn }) {
  const state = { kind: "client" };
  const part = (id, title, columns, ...controls) => {
    const made = panel(id, title, ...controls);
    const list = table(id, title, headsOf(columns));
    const note = el("p", { class: "note muted", hidden: true });
    made.body.append(note, scroll(title, "mid", list));
    return { ...made, list, note, columns };
  };
  const budgets = part("budgets", "Error budgets", BUDGETS);
  const lacks = part("infeasible", "Objectives that cannot be met within the hour", LACKS);
  const standings = part("compliance", "Compliance", STANDINGS, pick("compliance-kind", "By", { client: "client", application: "application", priority: "priority", vm: "VM" }, state.kind, (value) => { state.kind = value; turn(); }));
  const clients = part("clients", "Clients", CLIENTS);
  const slas = part("slas", "SLAs", SLAS);
  root.append(budgets.root, standings.root, lacks.root, clients.root, slas.root);

  const show = (of, answer, items, key, empty) => {
    of.note.hidden = Boolean(answer);
    if (!answer) { of.note.textContent = "Your role may not see this."; return; }
    showRows(of.list, items, key, of.columns, empty);
    of.count.textContent = String(items.length);
    stamp(of, { at: answer.at, made: answer.data.issued_s ?? answer.data.until_s ?? null, everyMs: EVERY_MS });
  };
  const optional = async (of, offered, path, itemsOf, key, empty) => {
    if (await offers(offered)) {
      const answer = await readOr(path, EVERY_MS);
      show(of, answer, answer ? itemsOf(answer.data) : [], key, empty);
    } else unavailable(of);
  };
  return async () => {
    const sizing = await readOr("sizing?limit=200", EVERY_MS);
    show(budgets, sizing, sizing ? sizing.data.budgets : [], (budget) => budget.client, "No minute was judged yet.");
    show(lacks, sizing, sizing ? sizing.data.infeasible : [], (lack) => `${lack.client}/${lack.resource}/${lack.where}`, "Every objective can be met, by the forecast.");
    await Promise.all([
      optional(standings, "/compliance", `compliance?kind=${state.kind}&limit=${LIMIT}`, (page) => page.items.flatMap((item) => item.objectives.map((each) => ({ item, each }))), ({ item, each }) => `${item.name}/${each.metric}`, "No minute was judged yet."),
      optional(clients, "/clients", `clients?limit=${LIMIT}`, (page) => page.items, (client) => client.id, "No client is registered."),
      optional(slas, "/slas", `slas?limit=${LIMIT}`, (page) => page.items, (sla) => sla.id, "No SLA is registered."),
    ]);
  };
}
export function unavailable(of) {
  of.note.hidden = false;
  of.note.textContent = "Not available on this coordinator.";
  of.list.hidden = true;
}
