// "Had these hosts been predictive last week": violations, steps, memory and hosts, scored against the demand that came.
import { Refused, offers, readOr } from "./api.js";
import { el, hostLink, panel, pick, scroll, table } from "./dom.js";
import { stamp } from "./freshness.js";
import { headsOf, showRows } from "./tables.js";
import { known, moment, number, percent, words } from "./units.js";
import { unavailable } from "./view_clients.js";

const EVERY_MS = 120000; // worked out from a week of history
const WAYS = ["happened", "static", "reactive", "predictive"];
const FIGURES = { violation_minutes: "violation minutes", steps: "steps", cpu_core_hours: "CPU core hours", memory_gib_hours: "memory GiB hours", hosts_needed: "hosts needed" };

export const shadowView = { title: "Shadow report", mount };

function mount(root, { turn }) {
  const state = { days: "7" };
  const shadow = panel("shadow", "Had these hosts been predictive", pick("shadow-days", "Days", { 1: "1", 3: "3", 7: "7", 14: "14" }, state.days, (value) => { state.days = value; turn(); }));
  const [note, list] = [el("p", { class: "note" }), table("shadow", "the fleet under each way of control", ["", ["", "num"]])];
  const verdict = el("p", { class: "note verdict", id: "shadow-verdict" });
  const hosts = table("shadow-hosts", "hosts under each way of control", ["Host"]);
  const method = el("details", {}, el("summary", {}, "How this is computed"), el("dl", { class: "told" }));
  shadow.body.append(verdict, note, scroll("the fleet under each way", "", list), el("h4", {}, "By host"), scroll("hosts under each way", "tall", hosts), el("div", { class: "note" }, method));
  root.append(shadow.root);
  return async () => {
    if (!(await offers("/shadow"))) { unavailable({ note, list }); hosts.hidden = true; return; }
    let found = null;
    try {
      found = await readOr(`shadow?days=${state.days}`, EVERY_MS);
    } catch (error) {
      if (!(error instanceof Refused) || error.status !== 429) throw error;
      note.textContent = "Another report is being made; this one follows.";
      return;
    }
    if (!found) { note.textContent = "Your role may not see this."; return; }
    showReport({ note, verdict, list, hosts, method }, found.data);
    stamp(shadow, { at: found.at, made: found.data.made_s, everyMs: EVERY_MS });
  };
}

function heads(list, columns) {
  const row = list.tHead.rows[0];
  if (row.dataset.key === columns.map(({ head }) => head).join()) return;
  row.dataset.key = columns.map(({ head }) => head).join();
  row.replaceChildren(...headsOf(columns).map(([text, kind]) => el("th", { scope: "col", class: kind }, text)));
}
function showReport({ note, verdict, list, hosts, method }, report) {
  const ways = WAYS.filter((way) => report.totals[way]);
  const of = (way, key) => { // exact decimals come as text
    const value = key === "hosts_needed" ? report.hosts_needed[way] : (report.totals[way] || {})[key];
    return known(value) ? Number(value) : null;
  };
  const change = (key) => {
    const [was, would] = [of("happened", key), of("predictive", key)];
    if (!known(was) || !known(would)) return `${FIGURES[key]} not known`;
    if (number(was, 0) === number(would, 0)) return `${FIGURES[key]} ${number(was, 0)} as before`;
    const by = was > 0 ? ` (${would <= was ? "−" : "+"}${percent(Math.abs(would / was - 1))})` : "";
    return `${FIGURES[key]} ${number(was, 0)} → ${number(would, 0)}${by}`;
  };
  verdict.textContent = `What happened → had they been predictive: ${["violation_minutes", "steps", "memory_gib_hours", "hosts_needed"].map(change).join("; ")}.`;
  note.textContent = [`${moment(report.from_s)} to ${moment(report.until_s)} UTC`, known(report.forecast_share) ? `a stored forecast for ${percent(report.forecast_share)} of the VMs' time` : null, ...report.notes].filter(known).join(" · ");
  const columns = [{ head: "Figure", of: (key) => FIGURES[key] }, ...ways.map((way) => ({ head: words(way), num: true, of: (key) => number(of(way, key), 0) }))];
  heads(list, columns);
  showRows(list, Object.keys(FIGURES), (key) => key, columns, "Nothing is known of this time.");
  const cells = ways.map((way) => ({ head: words(way), num: true, of: ({ ways: { [way]: sums } }) => (sums ? `${number(Number(sums.violation_minutes), 0)} min · ${number(sums.steps, 0)} steps · ${number(Number(sums.memory_gib_hours), 0)} GiB h` : "–") }));
  const byHost = [{ head: "Host", of: (host) => hostLink(host.host_id) }, { head: "VMs", num: true, of: (host) => number(host.vms, 0) }, ...cells];
  heads(hosts, byHost);
  showRows(hosts, report.hosts, (host) => host.host_id, byHost, "No host with history.");
  method.querySelector("dl").replaceChildren(...Object.entries(report.methods).flatMap(([name, text]) => [el("dt", {}, words(name)), el("dd", {}, text)]));
}
