// Elements. All text goes through textContent; nothing here takes HTML.
import { known } from "./units.js";

export const $ = (id) => document.getElementById(id);
export function el(tag, props, ...children) {
  const node = document.createElement(tag);
  for (const [key, value] of Object.entries(props || {})) {
    if (key === "class") node.className = value;
    else if (key in node) node[key] = value;
    else node.setAttribute(key, value);
  }
  node.append(...children.flat().filter(known));
  return node;
}
export const badge = (word, kind, title) => el("span", { class: `badge ${kind || word}`, title: title || "" }, word);
export const cell = (content, kind) => el("td", { class: kind || "" }, known(content) ? content : "–");
export const num = (content) => cell(content, "num");
export const link = (href, text, title) => el("a", { href, title: title || "" }, text);
export const vmLink = (id, name, query = "") => link(`#/vm/${encodeURIComponent(id)}${query}`, name || id, id);
export const hostLink = (id) => link(`#/host/${encodeURIComponent(id)}`, id);
export const muted = (text) => el("span", { class: "muted" }, text);
export const sub = (text) => el("span", { class: "sub" }, text);

// A panel with its title, a count, controls, and the place where the age of its data is shown.
export function panel(id, title, ...controls) {
  const count = el("span", { class: "count", id: `${id}-count` });
  const age = el("span", { class: "age", id: `${id}-age` });
  const body = el("div", { class: "body" });
  const root = el("section", { class: "panel", id: `${id}-panel`, "aria-labelledby": `${id}-title` },
    el("div", { class: "head" }, el("h3", { id: `${id}-title` }, title, count), el("span", { class: "picks" }, controls), age), body);
  return { root, body, count, age };
}
// heads: text, [text, class] or [text, class, hint].
export function table(id, label, heads) {
  const row = el("tr", {}, heads.map((head) => {
    const [text, kind, hint] = [head].flat();
    return el("th", { scope: "col", class: kind || "", title: hint || "" }, text);
  }));
  return el("table", { id, "aria-label": label }, el("thead", {}, row), el("tbody", {}));
}
// A box that scrolls by itself; a keyboard has to reach it.
export const scroll = (label, kind, ...children) => el("div", { class: `scroll ${kind || ""}`, tabIndex: 0, role: "group", "aria-label": label }, children);
export function pick(id, label, options, chosen, onchange) {
  const select = el("select", { id }, Object.entries(options).map(([value, text]) => el("option", { value }, text)));
  if (known(chosen)) select.value = chosen;
  select.addEventListener("change", () => onchange(select.value));
  return el("label", { class: "pick" }, `${label} `, select);
}
// Rows stay the same elements from turn to turn, so that focus, scroll position and text selection survive.
export function syncRows(body, items, key, fill, empty) {
  const rows = new Map([...body.rows].map((row) => [row.dataset.key, row]));
  const focused = document.activeElement;
  const wanted = items.map((item) => {
    const row = rows.get(String(key(item))) || el("tr", {});
    row.dataset.key = key(item);
    fill(row, item);
    return row;
  });
  if (!items.length) wanted.push(el("tr", {}, el("td", { class: "empty", colSpan: 20 }, empty)));
  body.replaceChildren(...wanted);
  if (focused && body.contains(focused)) focused.focus({ preventScroll: true });
}
// The first cell stays too, since it holds what can be focused: `first` makes its content once.
export function setCells(row, first, cells) {
  if (!row.cells.length) row.append(el("td", {}, first()));
  while (row.cells.length > 1) row.lastChild.remove();
  row.append(...cells);
  return row.cells[0].firstChild;
}
export function meter(used, limit, text, kind, mark) {
  const track = el("span", { class: "track" });
  const share = !known(used) || !limit || limit < 0 ? null : used / limit;
  if (share !== null) {
    const fill = el("span", { class: `fill${share > 1 ? " over" : share > 0.9 ? " high" : ""}` });
    fill.style.width = `${Math.min(100, share * 100)}%`;
    track.append(fill);
  }
  if (known(mark) && limit > 0 && mark <= limit) {
    const tick = el("span", { class: "mark" });
    tick.style.left = `${(mark / limit) * 100}%`;
    track.append(tick);
  }
  return el("span", { class: `meter ${kind || ""}` }, track, el("span", { class: "text" }, text));
}
export const fact = (name, value, note, kind) =>
  el("div", { class: kind || "" }, el("dt", {}, name), el("dd", {}, known(value) ? value : "–", note ? el("small", {}, ` ${note}`) : null));
export const lines = (list, items, empty) => list.replaceChildren(...(items.length ? items : [el("li", { class: "muted" }, empty)]));
