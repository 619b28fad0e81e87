// The shell: views by hash, one turn after another, and the truth about the connection.
//
// A turn reads the fleet and lets the view in sight read what it shows; turns never overlap. News (live.js) or a change of view ask for one
// at once. A view is {title, mount(root, params)}; mount returns the function of a turn: (promise of the fleet, painted) -> promise. A view
// that is left goes with its root.
import { Refused, offers, onTokenWanted, readOr } from "./api.js";
import { $, el, fact } from "./dom.js";
import { heard, notice, tick } from "./freshness.js";
import { follow, streaming, unfollow } from "./live.js";
import { askToken, learnRole, startSession } from "./orders.js";
import { hasToken, onChange, roleNow } from "./session.js";
import { clock, date, number } from "./units.js";
import { alertsView } from "./view_alerts.js";
import { auditView } from "./view_audit.js";
import { clientsView } from "./view_clients.js";
import { fleetView } from "./view_fleet.js";
import { hostView } from "./view_host.js";
import { planView } from "./view_plan.js";
import { qualityView } from "./view_quality.js";
import { shadowView } from "./view_shadow.js";
import { vmView } from "./view_vm.js";
import { vmsView } from "./view_vms.js";

const PERIOD_MS = 2000;
const STREAMING_MS = 5000; // beside a stream that tells what changes; well before a panel is called stale
const NEWS_MS = 400; // a cycle brings many events: one turn for all of them
const VIEWS = {
  fleet: fleetView, vms: vmsView, plan: planView, clients: clientsView, quality: qualityView, alerts: alertsView, audit: auditView, shadow: shadowView,
  host: hostView, vm: vmView,
};
const PARENT = { host: "fleet", vm: "vms" };
const OF_CLIENT = ["vms", "clients", "alerts"]; // the rest names or sums what is others'

let turnOfView = null;
let running = false;
let again = false;
let lostAt = null;
let nextAt = 0;
let wanted = null; // timer of a turn that news asked for
let unpainted = null; // name of the view whose first turn is not over: its time is kept as a measure, for operators' and our own tools

// "#/vm/ID?resource=x" -> {name, id, query}; "#vm=ID" and "#host=ID" are of links in alerts.
export function route(hash) {
  const old = new URLSearchParams(hash.slice(1));
  for (const name of ["vm", "host"]) if (!hash.startsWith("#/") && old.has(name)) return { name, id: old.get(name), query: old };
  const [path, query] = hash.replace(/^#\/?/, "").split("?");
  const [name, id] = path.split("/");
  return { name: VIEWS[name] ? name : "fleet", id: id ? decodeURIComponent(id) : null, query: new URLSearchParams(query || "") };
}

function show() {
  if (location.hash === "#view") return; // the skip link
  const { name, id, query } = route(location.hash);
  delete document.body.dataset.turned;
  const root = el("div", { class: "view", id: `view-${name}` });
  performance.mark(`asked ${unpainted = name}`);
  const title = id ? `${VIEWS[name].title} ${id}` : VIEWS[name].title;
  root.append(el("h2", { class: "title", tabIndex: -1 }, title));
  document.title = `${title} · Tidegate · ${$("fleet-name").textContent}`;
  for (const link of $("nav").querySelectorAll("a")) {
    if (link.dataset.view === (PARENT[name] || name)) link.setAttribute("aria-current", "page");
    else link.removeAttribute("aria-current");
  }
  const moved = document.activeElement && $("view").contains(document.activeElement);
  $("view").replaceChildren(root);
  turnOfView = VIEWS[name].mount(root, { id, query, turn });
  if (moved) root.querySelector("h2").focus();
  turn();
}

async function turn() {
  if (running) { again = true; return; }
  running = true;
  nextAt = Infinity;
  const act = turnOfView;
  try {
    await learnRole();
    const fleet = readOr("fleet", 500);
    const [answer] = await Promise.all([fleet, act(fleet, () => painted(act))]);
    if (answer) {
      heard(answer.data, answer.at);
      showFleet(answer.data);
    } else $("facts").replaceChildren(); // not for this role to know
    painted(act);
    if (act === turnOfView) document.body.dataset.turned = String(Date.now()); // all of the view in sight is from this turn or later
    lostAt = null;
    notice("link", null);
    link(true, streaming() ? "live · stream" : "live");
  } catch (error) {
    if (!(error instanceof Refused) && !["TypeError", "TimeoutError", "AbortError"].includes(error.name)) throw error;
    lost(error);
  } finally {
    running = false;
    nextAt = Date.now() + (streaming() ? STREAMING_MS : PERIOD_MS);
  }
  if (again) { again = false; turn(); }
}
// What a view is opened for is there; a view that does not say so earlier has painted when its first turn is over.
function painted(act) {
  if (unpainted === null || act !== turnOfView) return;
  const name = unpainted;
  unpainted = null;
  requestAnimationFrame(() => performance.measure(`view ${name}`, { start: `asked ${name}`, end: performance.now() }));
}
function lost(error) {
  if (error.status === 401) return link(false, "needs a token");
  lostAt = lostAt || new Date();
  const since = lostAt.toTimeString().slice(0, 8);
  const why = error.name === "TimeoutError" ? "none within 10 s" : error.message;
  link(false, `no answer since ${since}`);
  notice("link", `No answer from the coordinator since ${since} (${why}). Everything below is as it was last read; agents keep their hosts' limits meanwhile.`, "bad");
}
function link(live, text) {
  $("link").className = `link ${live ? "live" : "lost"}`;
  if ($("link-text").textContent !== text) $("link-text").textContent = text;
}

function showFleet(fleet) {
  const speed = fleet.clock_speed === null ? "real time" : `× ${number(fleet.clock_speed)}`;
  $("facts").replaceChildren(
    fact("Hosts", `${fleet.hosts_alive} alive`),
    fact("Silent", String(fleet.hosts_silent), fleet.hosts_silent ? "count as full" : "", fleet.hosts_silent ? "bad" : ""),
    fact("VMs", number(fleet.vms)), fact("Agents", number(fleet.agents_connected), "connected"), fact("Epoch", String(fleet.epoch)),
    fact("Cycle", number(fleet.cycle, 0), fleet.last_cycle_s === null ? "none yet" : `ended ${clock(fleet.last_cycle_s)}`),
    fact("Clock", clock(fleet.now_s), `${date(fleet.now_s)} · ${speed}`),
  );
  $("fleet-name").textContent = fleet.name;
  document.body.dataset.cycle = String(fleet.cycle);
}

// The navigation of the caller's role; a client begins at its VMs.
function fit() {
  const client = roleNow() === "client";
  for (const link of $("nav").querySelectorAll("a")) link.parentElement.hidden = client && !OF_CLIENT.includes(link.dataset.view);
  if (client && ["", "#/fleet"].includes(location.hash)) history.replaceState(null, "", "#/vms");
}
function news() {
  if (wanted === null) wanted = setTimeout(() => { wanted = null; turn(); }, NEWS_MS);
}
function start() {
  $("nav").append(...Object.entries(VIEWS).filter(([name]) => !PARENT[name]).map(([name, { title }]) => {
    const link = el("a", { href: `#/${name}` }, title);
    link.dataset.view = name;
    return el("li", {}, link);
  }));
  onTokenWanted(() => { if (!hasToken()) askToken(); });
  onChange("role", () => { fit(); show(); follow(news); }); // buttons come and go with it; without a token the stream may have been closed to us
  onChange("token", () => { unfollow(); fit(); show(); });
  startSession(turn);
  window.addEventListener("hashchange", show);
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", turn);
  document.addEventListener("visibilitychange", () => { if (document.hidden) unfollow(); else { turn(); follow(news); } });
  setInterval(() => {
    tick();
    if (!document.hidden && Date.now() >= nextAt) turn();
  }, 500);
  show();
  offers("/fleet").then(() => follow(news), () => null); // without the document of what is offered the page polls, and the poll tells why
}
start();
