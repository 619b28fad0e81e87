// Alerts that fire or will, the silences over them, and whether those who are told take what they are told. Operators take an alert on
// themselves, silence it for an hour, and end silences.
import { offers, readOr } from "./api.js";
import { badge, el, panel, pick, scroll, sub, table } from "./dom.js";
import { stamp } from "./freshness.js";
import { confirmed, orderButton } from "./orders.js";
import { may } from "./session.js";
import { headsOf, showRows } from "./tables.js";
import { clock, known, moment, number, words } from "./units.js";
import { unavailable } from "./view_clients.js";

const EVERY_MS = 2000;
const HOUR_S = 3600;
const LOOK = { critical: "full", warning: "reactive", info: "observe", firing: "full", pending: "reactive", resolved: "alive" };
const WORST = ["critical", "warning", "info"];
const ORDER = ["firing", "pending", "resolved"];
const labels = (alert) => Object.entries(alert.labels).map(([name, value]) => `${name}=${value}`).join(" ");
const about = ({ labels: { vm, host } }) => (vm ? `#/vm/${encodeURIComponent(vm)}` : host ? `#/host/${encodeURIComponent(host)}` : "#/fleet");
const ALERTS = [
  { head: "State", of: (alert) => el("span", {}, badge(alert.state, LOOK[alert.state]), alert.silenced_by.length ? badge("silenced") : null, alert.acknowledged_by ? badge(`seen by ${alert.acknowledged_by}`) : null) },
  { head: "Severity", of: (alert) => badge(alert.severity, LOOK[alert.severity]) }, { head: "Alert", wrap: true, of: (alert) => el("span", {}, el("a", { href: about(alert) }, alert.rule), sub(labels(alert))) },
  { head: "What", wrap: true, of: (alert) => el("span", {}, alert.summary, sub(alert.action)) }, { head: "Value", num: true, of: (alert) => number(alert.value) },
  { head: "Since", of: (alert) => clock(alert.started_s) }, { head: "Seen last", of: (alert) => clock(alert.seen_s) }, { head: "Resolved", of: (alert) => clock(alert.resolved_s) },
];
const matcher = (each) => `${each.name}${each.equal ? "=" : "!="}${each.regex ? "~" : ""}${each.value}`;
const SILENCES = [
  { head: "State", of: (each) => badge(each.active ? "in force" : "not in force", each.active ? "reactive" : "") }, { head: "Of", wrap: true, of: ({ silence }) => silence.matchers.map(matcher).join(", ") },
  { head: "Until", of: ({ silence }) => moment(silence.ends_s) }, { head: "By", of: ({ silence }) => silence.created_by }, { head: "Why", wrap: true, of: ({ silence }) => silence.comment },
];
const RULES = [
  { head: "Rule", of: (rule) => el("b", {}, rule.name) }, { head: "Severity", of: (rule) => badge(rule.severity, LOOK[rule.severity]) }, { head: "Threshold", num: true, of: (rule) => (known(rule.threshold) ? `${number(rule.threshold)} ${rule.unit}` : "–") },
  { head: "For", num: true, of: (rule) => `${number(rule.for_s, 0)} s` }, { head: "Meaning", wrap: true, of: (rule) => rule.meaning },
];

// What an operator may do about an alert, as buttons. `done`: reads everything anew.
function alertOrders(alert, done) {
  if (alert.state === "resolved" || !may("operator")) return "–";
  const own = Object.entries(alert.labels).map(([name, value]) => ({ name, value })).concat({ name: "alertname", value: alert.rule });
  const take = () => confirmed(`Take ${alert.rule} on you?`, [alert.summary, "Receivers are told that you look after it, and are not reminded of it again."], "Take it", "POST", `alerts/${encodeURIComponent(alert.id)}/acknowledgement`, {}).then(done);
  const hush = () => confirmed(`Silence ${alert.rule} for an hour?`, [alert.summary, `Nobody is told of what matches ${own.map(matcher_).join(", ")}. It is judged and shown all the same.`], "Silence it", "POST", "silences", { matchers: own, duration_s: HOUR_S, comment: "from the status page" }).then(done);
  return el("span", { class: "together" }, alert.acknowledged_by ? null : orderButton("Take…", take), alert.silenced_by.length ? null : orderButton("Silence…", hush));
}
const matcher_ = ({ name, value }) => `${name}=${value}`;
function silenceOrders({ silence, active }, done) {
  if (!active || !may("operator")) return "–";
  return orderButton("End…", () => confirmed("End this silence?", [silence.comment, "Who should have been told meanwhile of what still fires is told at the next look."], "End it", "DELETE", `silences/${encodeURIComponent(silence.id)}`).then(done));
}

export const alertsView = { title: "Alerts", mount };

function mount(root, { turn }) {
  const state = { shown: "" };
  const part = (id, title, columns, ...controls) => {
    const made = panel(id, title, ...controls);
    const [list, note] = [table(id, title, headsOf(columns)), el("p", { class: "note muted", hidden: true })];
    made.body.append(note, scroll(title, "", list));
    return { ...made, list, note };
  };
  const done = (answer) => { if (answer) turn(); };
  const orders = may("operator") ? [{ head: "Orders", of: (alert) => alertOrders(alert, done) }] : [];
  const [ofAlerts, ofSilences] = [[...ALERTS, ...orders], [...SILENCES, ...(orders.length ? [{ head: "Orders", of: (each) => silenceOrders(each, done) }] : [])]];
  const alerts = part("alerts", "Alerts", ofAlerts, pick("alert-state", "Show", { "": "all", firing: "firing", pending: "pending", resolved: "resolved" }, "", (value) => { state.shown = value; turn(); }));
  const silences = part("silences", "Silences", ofSilences);
  const rules = part("rules", "Rules in force", RULES);
  root.append(alerts.root, silences.root, rules.root);
  return async () => {
    if (!(await offers("/alerts"))) { [alerts, silences, rules].forEach(unavailable); return; }
    const [found, quiet, known_] = await Promise.all([readOr(`alerts?limit=200${state.shown ? `&status=${state.shown}` : ""}`, 1000), readOr("silences", EVERY_MS), readOr("alerts/rules", 30000)]);
    for (const [of, answer] of [[alerts, found], [silences, quiet], [rules, known_]]) {
      of.note.hidden = Boolean(answer);
      if (!answer) of.note.textContent = "Your role may not see this.";
    }
    if (found) {
      const { items, total, hidden } = found.data;
      const rank = (alert) => 10 * ORDER.indexOf(alert.state) + WORST.indexOf(alert.severity);
      showRows(alerts.list, [...items].sort((a, b) => rank(a) - rank(b) || b.started_s - a.started_s), (alert) => alert.id, ofAlerts, "No alert.", true);
      alerts.count.textContent = `${items.filter((alert) => alert.state === "firing").length} firing · ${total} in all${hidden ? ` · ${hidden} more that found no room` : ""}`;
      stamp(alerts, { at: found.at });
    }
    if (quiet) {
      const items = Array.isArray(quiet.data) ? quiet.data : quiet.data.items;
      showRows(silences.list, items, ({ silence }) => silence.id, ofSilences, "Nothing is silenced.", true);
      stamp(silences, { at: quiet.at });
    }
    if (known_) {
      showRows(rules.list, known_.data.rules, (rule) => rule.name, RULES, "No rule.");
      const stuck = known_.data.receivers.filter((receiver) => receiver.error !== null);
      rules.count.textContent = stuck.length ? `NOT TAKEN by ${stuck.map((receiver) => `${receiver.name}: ${words(receiver.error)} (${receiver.waiting} wait)`).join("; ")}` : `told to ${known_.data.receivers.map((receiver) => receiver.name).join(", ") || "nobody"}`;
      stamp(rules, { at: known_.at, everyMs: 30000 });
    }
  };
}
