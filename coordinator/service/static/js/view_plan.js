// The newest placement: moves and why, what it costs and saves, how far from the bound, who is short of what, and why a VM is not elsewhere.
import { readOr } from "./api.js";
import { badge, cell, el, fact, hostLink, lines, meter, num, panel, scroll, setCells, sub, syncRows, table, vmLink } from "./dom.js";
import { stamp } from "./freshness.js";
import { confirmed, orderButton } from "./orders.js";
import { may } from "./session.js";
import { headsOf, showRows } from "./tables.js";
import { RESOURCES, amount, clock, known, minute, number, percent, words } from "./units.js";

const SLOW_MS = 5000;
const total = (money) => Object.values(money).reduce((sum, part) => sum + part, 0);
const MOVES = [
  { head: "VM", of: (move) => vmLink(move.vm_id) }, { head: "From → to", of: (move) => el("span", {}, hostLink(move.source), " → ", hostLink(move.target)) },
  { head: "Phase", of: (move) => badge(move.phase, move.phase) }, { head: "Tries", num: true, of: (move) => String(move.tries) }, { head: "Takes", num: true, of: (move) => `${number(move.seconds, 0)} s` },
  { head: "Begins", of: (move) => `${clock(move.not_before_ns / 1e9)} to ${clock(move.latest_ns / 1e9)}` }, { head: "Why", wrap: true, of: (move) => move.why || "–" },
];
const SCARCE = [
  { head: "Host", of: (short) => hostLink(short.host_id) }, { head: "Resource", of: (short) => RESOURCES[short.resource].name }, { head: "From to", of: (short) => `${minute(short.from_s)} – ${minute(short.until_s)}` },
  { head: "Missing", num: true, of: (short) => amount(short.missing, short.resource) }, { head: "Penalty", num: true, hint: "expected SLA penalty over the hour", of: (short) => number(short.penalty) },
  { head: "Shadow price", num: true, hint: "what this much more would save, if all of it were worth as much as its first unit", of: (short) => `${number(short.grain_price)} per ${amount(short.grain, short.resource)}` },
  { head: "Would save", num: true, of: (short) => number(short.grain_saves) },
];
const SPARE = [
  { head: "Pool", of: (spare) => spare.pool }, { head: "Resource", of: (spare) => RESOURCES[spare.resource].name }, { head: "Worst host to lose", of: (spare) => hostLink(spare.worst_host) },
  { head: "Needed", num: true, of: (spare) => amount(spare.needed, spare.resource) }, { head: "Free", num: true, of: (spare) => amount(spare.free, spare.resource) },
  { head: "Missing", num: true, of: (spare) => (spare.missing > 0 ? badge(amount(spare.missing, spare.resource), "full") : "none") }, { head: "Stranded VMs", num: true, of: (spare) => String(spare.stranded.length) },
];

export const planView = { title: "Plan", mount };

function mount(root, { turn }) {
  const plan = panel("plan", "Newest placement");
  const note = el("p", { class: "note", id: "placement-note" });
  const sheet = el("dl", { class: "sheet", id: "plan-facts" });
  const moves = el("ul", { class: "plain", id: "moves" });
  const money = table("money", "money of the coming hour by cause", ["Cause", ["Before", "num"], ["After", "num"]]);
  const energy = table("energy", "energy of the coming hour by pool", ["Pool", ["Before, kWh", "num"], ["After, kWh", "num"], ["Budget, kWh", "num"]]);
  plan.body.append(note, sheet, el("h4", {}, "Moves"), scroll("moves", "mid", moves), el("div", { class: "pair" }, scroll("money", "", money), scroll("energy", "", energy)));
  const hosts = panel("hosts-ahead", "Hosts, now and as planned");
  const hostTable = table("hosts-ahead", "hosts now and as the placement leaves them", ["Host", ["VMs, now → planned", "num"], ["CPU, now → planned", "", "the hour's highest bucket with its margin, of the host's capacity; the tick: now"], ["Memory, now → planned", "", "the hour's highest bucket with its margin, of what may be promised; the tick: now"]]);
  hosts.body.append(scroll("hosts ahead", "mid", hostTable));
  const course = panel("migration", "Migration plan");
  const courseTable = table("migration", "moves of the migration plan", headsOf(MOVES));
  const orders = el("p", { class: "note choices" });
  const fate = el("p", { class: "note", id: "migration-note" });
  course.body.append(fate, orders, scroll("moves of the migration plan", "mid", courseTable));
  const sizing = panel("sizing", "Short ahead, and what more would save");
  const [scarce, spare] = [table("scarce", "hosts that will be short", headsOf(SCARCE)), table("spare", "room for a failed host", headsOf(SPARE))];
  sizing.body.append(scroll("hosts that will be short", "mid", scarce), el("h4", {}, "Room for a failed host"), scroll("room for a failed host", "mid", spare));
  const whyNot = whyNotPanel(null);
  root.append(plan.root, el("div", { class: "columns" }, el("div", {}, course.root, hosts.root), el("div", {}, sizing.root, whyNot.root)));

  return async () => {
    const [placed, ahead, migration, sized] = await Promise.all([readOr("placement", 1000), readOr("placement/hosts?limit=30", SLOW_MS), readOr("migration", 1000), readOr("sizing?limit=50", 1000)]);
    if (!placed || !migration) {
      note.textContent = "Your role sees no plan: it names the hosts of others.";
      return;
    }
    showPlan({ plan, note, sheet, moves, money, energy }, placed.data);
    stamp(plan, { at: placed.at, made: placed.data.solved_s });
    showHosts(hostTable, ahead ? ahead.data : []);
    if (ahead) stamp(hosts, { at: ahead.at, made: placed.data.solved_s, everyMs: SLOW_MS });
    showCourse({ course, courseTable, orders, fate }, migration.data, turn);
    stamp(course, { at: migration.at });
    if (sized) {
      sizing.count.textContent = sized.data.scarce.length ? `${sized.data.scarce.length} short` : "none short";
      showRows(scarce, sized.data.scarce, (short) => `${short.host_id}/${short.resource}`, SCARCE, "No host will be short within the hour.");
      showRows(spare, sized.data.spare, (each) => `${each.pool}/${each.resource}`, SPARE, "Not worked out yet.");
      stamp(sizing, { at: sized.at, made: sized.data.issued_s });
    }
  };
}

function showPlan({ plan: panel_, note, sheet, moves, money, energy }, { plan, code }) {
  panel_.count.textContent = plan ? `${plan.moves.length} ${plan.moves.length === 1 ? "move" : "moves"} · ${code ? words(code) : "carried out"}` : "none yet";
  if (!plan) { note.textContent = "No placement was made yet."; lines(moves, [], "No move yet."); return; }
  const kwh = (when) => plan.energy.reduce((sum, pool) => sum + pool[when], 0);
  note.textContent = plan.status === "hold" ? `Everything is held: ${plan.code}: ${plan.detail}` : [...(plan.wake.length ? [`Wake ${plan.wake.join(", ")}.`] : []), ...(plan.sleep.length ? [`May sleep: ${plan.sleep.join(", ")}.`] : []), ...plan.notes.map((each) => `Note: ${each}.`)].join(" ");
  sheet.replaceChildren(fact("Cost of the coming hour", `${number(total(plan.before))} → ${number(total(plan.after))}`), fact("Energy", `${number(kwh("kwh_before"))} → ${number(kwh("kwh_after"))} kWh`), fact("Hosts in use", `${plan.hosts_before} → ${plan.hosts_after}`),
    fact("Gap", known(plan.gap) ? `${number(plan.gap * 100)} %` : "not known", known(plan.gap) ? "at most, above the bound" : ""), fact("Bound", number(plan.bound), "no assignment costs less"), fact("Result", words(plan.status), `${number(plan.wall_ms)} ms${plan.cut ? ", cut by its deadline" : ""}`));
  lines(moves, plan.moves.map((move) => el("li", {}, vmLink(move.vm_id), ` ${move.from_host} → ${move.to_host}, worth ${number(move.gain)} for a cost of ${number(move.cost)}: `, el("span", { class: "muted" }, move.why))), "No move beats staying by more than it costs.");
  const causes = [...new Set([...Object.keys(plan.before), ...Object.keys(plan.after)])];
  showRows(money, causes, (cause) => cause, [{ of: words }, { num: true, of: (cause) => number(plan.before[cause] ?? 0) }, { num: true, of: (cause) => number(plan.after[cause] ?? 0) }], "No money is known.");
  showRows(energy, plan.energy, (pool) => pool.pool, [{ of: (pool) => pool.pool }, { num: true, of: (pool) => number(pool.kwh_before) }, { num: true, of: (pool) => number(pool.kwh_after) }, { num: true, of: (pool) => number(pool.budget_kwh) }], "No pool has a power curve.");
}
function showHosts(table_, ahead) {
  const peak = (resources, name) => {
    const found = resources.find((entry) => entry.resource === name);
    return [Math.max(...found.high), found.room];
  };
  const cellOf = (host, name) => {
    const [[now, room], [then]] = [peak(host.before, name), peak(host.after, name)];
    return cell(meter(then, room, room ? `${percent(now / room)} → ${percent(then / room)}` : "–", "", now));
  };
  syncRows(table_.tBodies[0], ahead, (host) => host.host_id, (row, host) => {
    const name = setCells(row, () => el("span", {}), [num(`${host.vms_before} → ${host.vms_after}`), cellOf(host, "cpu_millicores"), cellOf(host, "memory_bytes")]);
    name.replaceChildren(hostLink(host.host_id), sub(host.closed ? "kept empty" : host.pool));
  }, "No placement yet.");
}
function showCourse({ course, courseTable, orders, fate }, migration, turn) {
  const { plan } = migration;
  const done = plan ? plan.moves.filter((move) => move.phase === "done").length : 0;
  course.count.textContent = plan ? `plan ${plan.status}: ${done} of ${plan.moves.length} moved` : "none yet";
  fate.textContent = `${migration.execute ? "Moves are carried out once approved." : "Advice only: placement.execute is off, no move is carried out."}${plan && plan.why ? ` ${plan.why}` : ""}${migration.failed.length ? ` ${migration.failed.length} pairs are not tried again for now.` : ""}`;
  showRows(courseTable, plan ? plan.moves : [], (move) => `${move.vm_id}/${move.stage}`, MOVES, "No move.");
  const order = (action, text, told) => async () => {
    if (await confirmed(text, told, action === "approve" ? "Approve" : "Abort", "PUT", `migrations/${encodeURIComponent(plan.id)}`, { action })) turn();
  };
  const count = plan ? `${plan.moves.length - done} of its ${plan.moves.length} moves are not done.` : "";
  const open = plan && ["proposed", "running", "stopping"].includes(plan.status);
  const key = `${plan && plan.id} ${plan && plan.status} ${count} ${may("operator")}`;
  if (orders.dataset.key === key) return; // a button that has the focus stays
  orders.dataset.key = key;
  orders.replaceChildren(...(!open ? [] : [
    plan.status === "proposed" ? orderButton("Approve…", order("approve", `Approve migration plan ${plan.id}?`, [count, "VMs are moved live, some at a time, in the order of the plan."])) : null,
    may("operator") ? orderButton("Abort…", order("abort", `Abort migration plan ${plan.id}?`, [count, "Nothing new begins; what is under way ends by itself."])) : null]).filter(known));
}

// Why the plan does not have a VM on a host. `vm` null: it can be chosen too.
export function whyNotPanel(vm) {
  const panel_ = panel("why-not", "Why not on another host?");
  const asked = el("input", { id: "why-not-vm", required: true, value: vm || "", size: 14 });
  const list = el("datalist", { id: "why-not-hosts" });
  const host = el("input", { id: "why-not-host", required: true, size: 14 });
  host.setAttribute("list", "why-not-hosts");
  const answer = el("div", { class: "note", id: "why-not-answer", role: "status" });
  const form = el("form", { class: "note choices" }, vm ? null : el("label", { class: "pick" }, "VM ", asked), el("label", { class: "pick" }, "Host ", host), el("button", { type: "submit" }, "Ask"));
  panel_.body.append(form, list, answer);
  form.addEventListener("submit", async (event) => {
    event.preventDefault();
    const found = await readOr(`placement/why-not?vm=${encodeURIComponent(asked.value)}&host=${encodeURIComponent(host.value)}`);
    answer.replaceChildren(...(found ? told(found.data) : [el("p", { class: "wrong" }, "The newest plan knows no such VM or host, or your role may not ask.")]));
    if (found) stamp(panel_, { at: found.at, everyMs: 600000 });
  });
  host.addEventListener("focus", async () => { // up to a thousand names: only for whoever asks
    if (list.childElementCount) return;
    const hosts = await readOr("placement/hosts?limit=1000", 60000);
    list.replaceChildren(...(hosts ? hosts.data : []).map(({ host_id }) => el("option", { value: host_id })));
  });
  return { root: panel_.root, show: (mayAsk) => { panel_.root.hidden = !mayAsk; } };
}
function told(why) {
  const verdict = why.here ? `The plan has it on ${why.host_id}.` : why.possible ? `It could be on ${why.host_id}, and that would cost ${number(why.total)} more over the hour.` : `It cannot be on ${why.host_id}:`;
  return [el("p", {}, verdict), el("ul", { class: "told" }, why.bindings.map((binding) => el("li", {}, badge(words(binding.kind), "refused"), ` ${binding.text}`, binding.change ? sub(`would be lifted by ${binding.change}`) : null)))];
}
