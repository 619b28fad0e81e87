// How old everything on the page is, by the coordinator's clock and by the browser's. Nothing old may look fresh.
//
// What an answer says is as old as the coordinator made it (`made`, its clock) and was read at a moment of ours (`at`). Both ages grow by
// themselves each second, whether or not answers come. A loop that stands still answers on and on: it is known by the last cycle's age.
import { clock, known, number, span } from "./units.js";
import { $, el } from "./dom.js";

const CYCLE_S = 300; // a decision each bucket of five minutes
const STANDING_MS = 30000; // its clock must have moved by then
const shown = new Map(); // panel -> {made, at, everyMs}
const notices = new Map(); // key -> {text, kind}
let fleet = null;
let heardAt = null;
let movedAt = null;

const speed = () => (fleet && known(fleet.clock_speed) ? fleet.clock_speed : 1);
export const clockNow = () => (fleet === null ? null : fleet.now_s + ((Date.now() - heardAt) / 1000) * speed());

export function heard(newest, at) {
  if (fleet === null || newest.now_s !== fleet.now_s) movedAt = at;
  fleet = newest;
  heardAt = at;
  notice("loop", stuck(newest), "bad");
  const standing = at - movedAt > STANDING_MS ? `The coordinator's clock has stood at ${clock(newest.now_s)} UTC for ${span((at - movedAt) / 1000)}: what is shown here does not change.` : null;
  notice("clock", standing, "bad");
}

// Why the decision loop is to be called stuck, or null. Pure.
export function stuck({ now_s, last_cycle_s, last_cycle_wall_ms, clock_speed, cycle }) {
  if (!known(last_cycle_s)) return null; // just started: the facts say "none yet"
  const lasts = ((last_cycle_wall_ms || 0) / 1000) * (clock_speed || 1);
  const age = now_s - last_cycle_s;
  if (age <= 2 * CYCLE_S + 2 * lasts) return null;
  return `The decision loop is stuck: cycle ${number(cycle, 0)} ended at ${clock(last_cycle_s)} UTC, ${span(age)} ago; one is due every ${span(CYCLE_S)}. Forecasts, plans and steps below are of then.`;
}

// `made`: when the coordinator made it, Unix seconds; null = with the answer. `everyMs`: how often the page reads it.
export function stamp(panel, { at, made = null, everyMs = 2000 }) {
  shown.set(panel, { at, made, everyMs });
  show(panel);
}
function show(panel) {
  const { at, made, everyMs } = shown.get(panel);
  const readS = (Date.now() - at) / 1000;
  const now = clockNow();
  const madeS = known(made) && now !== null ? now - made : null;
  const unread = readS > (3 * everyMs) / 1000 + 4;
  const old = madeS !== null && madeS > 2 * CYCLE_S + speed() * ((3 * everyMs) / 1000 + 4);
  const parts = [madeS === null ? null : `made ${clock(made)}, ${span(madeS)} old`, unread ? `STALE: not read for ${span(readS)}` : `read ${span(readS)} ago`];
  if (old && !unread) parts.push("OLD");
  const text = parts.filter(Boolean).join(" · ");
  if (panel.age.textContent !== text) panel.age.textContent = text;
  panel.root.classList.toggle("stale", unread || old);
}

export function notice(key, text, kind = "warn") {
  if (text === ((notices.get(key) || {}).text || null)) return;
  if (text === null) notices.delete(key);
  else notices.set(key, { text, kind });
  $("banners").replaceChildren(...[...notices.values()].map((each) => el("p", { class: `banner ${each.kind}` }, each.text)));
}
export function tick() {
  for (const panel of [...shown.keys()]) {
    if (panel.root.isConnected) show(panel);
    else shown.delete(panel);
  }
}
