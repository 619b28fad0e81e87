// Who changed what, and who was refused: the audit, newest first.
import { offers, readOr } from "./api.js";
import { badge, el, panel, scroll, sub, table } from "./dom.js";
import { stamp } from "./freshness.js";
import { orderButton } from "./orders.js";
import { hasToken } from "./session.js";
import { headsOf, showRows } from "./tables.js";
import { moment } from "./units.js";

const EVERY_MS = 5000;
const ROWS = [
  { head: "No.", num: true, of: (row) => String(row.sequence) }, { head: "Time", of: (row) => moment(row.time_ns / 1e9) }, { head: "Who", of: (row) => el("span", {}, row.actor, sub(`${row.role} by ${row.how}`)) },
  { head: "What", wrap: true, of: (row) => el("span", {}, `${row.action} ${row.target}`, sub(row.what)) },
  { head: "Result", of: (row) => el("span", {}, badge(row.status < 400 ? `done ${row.status}` : `refused ${row.status}`, row.status < 400 ? "alive" : "refused"), sub(row.result)) },
  { head: "Hash", of: (row) => el("span", { class: "code", title: `${row.hash} over ${row.previous}` }, row.hash.slice(0, 12)) },
];

export const auditView = { title: "Audit", mount };

function mount(root, { turn }) {
  const state = { cursors: [null] };
  const older = el("button", { type: "button", class: "quiet", hidden: true, onclick: () => { state.cursors.push(older.dataset.cursor); turn(); } }, "Older");
  const newer = el("button", { type: "button", class: "quiet", hidden: true, onclick: () => { state.cursors.pop(); turn(); } }, "Newer");
  const audit = panel("audit", "Audit", newer, older);
  const list = table("audit", "audit", headsOf(ROWS));
  const note = el("p", { class: "note muted", hidden: true });
  audit.body.append(note, scroll("audit", "", list));
  root.append(audit.root);
  const say = (text, button = null) => { note.hidden = false; note.replaceChildren(...[text, button].filter((part) => part !== null)); list.hidden = true; };
  return async () => {
    if (!(await offers("/audit"))) return say("Not available on this coordinator.");
    if (!hasToken()) return say("The audit is for operators and admins. ", orderButton("See the audit", () => null));
    const cursor = state.cursors[state.cursors.length - 1];
    const found = await readOr(`audit?limit=100${cursor ? `&cursor=${cursor}` : ""}`, EVERY_MS);
    if (!found) return say("Your role may not see the audit.");
    [note.hidden, list.hidden] = [true, false];
    showRows(list, found.data.items, (row) => row.sequence, ROWS, "Nothing was written yet.");
    older.hidden = found.data.next_cursor === null;
    older.dataset.cursor = found.data.next_cursor || "";
    newer.hidden = state.cursors.length === 1;
    stamp(audit, { at: found.at, everyMs: EVERY_MS });
    return undefined;
  };
}
