// One chart as SVG: demand, peak and allocation of the past, what was forecast for it, and the coming hour as a fan of bands.
//
// Below the lines a strip says in which buckets usage ran into its limit (there demand is an estimate), and on the time line stand the steps:
// ▲ more, ▼ less, ✕ refused or failed. A pointer or the arrow keys read one moment; the same numbers are in the table beside it.
import { el } from "./dom.js";
import { known, minute, percent } from "./units.js";

const NS = "http://www.w3.org/2000/svg";
const STEP_S = 300;
const [WIDE, HIGH, LEFT, RIGHT, TOP, BOTTOM] = [860, 320, 52, 10, 16, 46];
const FAN = [[0.025, 0.975, "95 %"], [0.1, 0.9, "80 %"], [0.25, 0.75, "50 %"]];

function svg(tag, props, ...children) {
  const node = document.createElementNS(NS, tag);
  for (const [key, value] of Object.entries(props || {})) node.setAttribute(key, String(value));
  node.append(...children.filter(known));
  return node;
}
// Points with gaps where a value is unknown.
function path(points, x, y, steps = false) {
  let text = "";
  let last = null;
  for (const [at, value] of points) {
    if (!known(value)) { last = null; continue; }
    text += last === null ? `M${x(at)},${y(value)}` : steps ? `H${x(at)}V${y(value)}` : `L${x(at)},${y(value)}`;
    last = value;
  }
  return text;
}
function area(rows, x, y) {
  const runs = [[]];
  for (const row of rows) {
    if (known(row[1]) && known(row[2])) runs[runs.length - 1].push(row);
    else if (runs[runs.length - 1].length) runs.push([]);
  }
  return runs.filter((run) => run.length > 1).map((run) => `M${run.map(([at, low]) => `${x(at)},${y(low)}`).join("L")}L${run.slice().reverse().map(([at, , high]) => `${x(at)},${y(high)}`).join("L")}Z`).join("");
}
function niceStep(most) {
  const raw = most / 4;
  const power = 10 ** Math.floor(Math.log10(raw));
  return [1, 2, 2.5, 5, 10].map((times) => times * power).find((step) => step >= raw) || raw;
}
const timeStep = (seconds) => [900, 1800, 3600, 7200, 14400, 21600, 43200, 86400].find((step) => seconds / step <= 9) || 86400;

// past: ResourceHistory or null; ahead: {levels, rows}; steps: [{at_s, mark, text}]; unit: {unit, scale}.
export function chart({ past, ahead, steps, unit, leadMinutes }) {
  const start = past ? past.start_s : [];
  const zip = (values) => start.map((at, i) => [at, known(values[i]) ? values[i] * unit.scale : null]);
  const rows = ahead.rows;
  const scaled = (value) => (known(value) ? value * unit.scale : null);
  const level = (row, wanted, from = "quantiles") => scaled(row[from][ahead.levels.indexOf(wanted)]);
  const lines = past ? { demand: zip(past.demand), peak: zip(past.peak), allocation: zip(past.allocation), before: zip(past.forecast_mean) } : { demand: [], peak: [], allocation: [], before: [] };
  const mean = rows.map((row) => [row.start_s, scaled(row.mean)]);
  const highest = rows.map((row) => [row.start_s, level(row, 0.95, "peak_quantiles")]);
  const fan = FAN.map(([low, high, name]) => ({ name, rows: rows.map((row) => [row.start_s, level(row, low), level(row, high)]) }));
  const behind = past ? start.map((at, i) => [at, scaled(past.forecast_q10[i]), scaled(past.forecast_q90[i])]) : [];

  const now = rows.length ? rows[0].start_s : start.length ? start[start.length - 1] + STEP_S : null;
  const from = start.length ? start[0] : now;
  const until = rows.length ? rows[rows.length - 1].start_s : now;
  if (from === null || until <= from) return el("p", { class: "note" }, "Nothing to draw yet: no closed bucket and no forecast.");
  const values = [...Object.values(lines).flat().map(([, value]) => value), ...highest.map(([, value]) => value), ...fan[0].rows.map(([, , high]) => high)].filter(known);
  const most = Math.max(...values, 1e-9) * 1.06;
  const x = (at) => +(LEFT + ((at - from) / (until - from)) * (WIDE - LEFT - RIGHT)).toFixed(1);
  const y = (value) => +(HIGH - BOTTOM - (Math.max(0, value) / most) * (HIGH - TOP - BOTTOM)).toFixed(1);

  const drawing = svg("svg", { viewBox: `0 0 ${WIDE} ${HIGH}`, class: "chart", role: "img", tabindex: 0, "aria-label": `demand, allocation and forecast in ${unit.unit}; arrow keys read single moments` });
  grid(drawing, { from, until, most, x, y, unit });
  const draw = (kind, d) => { if (d) drawing.append(svg("path", { class: kind, d })); };
  draw("band past", area(behind, x, y));
  fan.forEach((each, i) => draw(`band fan fan${i}`, area(each.rows, x, y)));
  draw("line before", path(lines.before, x, y));
  draw("line allocation", path(lines.allocation, x, y, true));
  draw("line peak", path(lines.peak, x, y));
  draw("line highest", path(highest, x, y));
  draw("line demand", path(lines.demand, x, y));
  draw("line mean", path(mean, x, y));
  if (now !== null) drawing.append(svg("line", { class: "now", x1: x(now), x2: x(now), y1: TOP - 4, y2: HIGH - BOTTOM }), label("now", x(now), TOP - 6));
  censored(drawing, past, x);
  for (const { at_s, mark, text } of steps.filter((step) => step.at_s >= from && step.at_s <= until)) {
    drawing.append(svg("text", { class: `step ${mark === "✕" ? "no" : ""}`, x: x(at_s), y: HIGH - BOTTOM + 14, "text-anchor": "middle" }, mark, svg("title", {}, document.createTextNode(text))));
  }
  const readout = el("p", { class: "readout", role: "status" }, "Point at the chart, or use the arrow keys on it, to read a moment.");
  follow(drawing, readout, moments({ lines, mean, highest, fan, past }), x, unit);
  return el("div", {}, drawing, legend(leadMinutes), readout);
}
const label = (text, x, y, anchor = "middle") => svg("text", { class: "label", x, y, "text-anchor": anchor }, document.createTextNode(text));

function grid(drawing, { from, until, most, x, y, unit }) {
  const step = niceStep(most);
  for (let value = 0; value <= most; value += step) {
    drawing.append(svg("line", { class: "grid", x1: LEFT, x2: WIDE - RIGHT, y1: y(value), y2: y(value) }), label(`${+value.toPrecision(3)}`, LEFT - 6, y(value) + 4, "end"));
  }
  drawing.append(label(unit.unit, LEFT - 6, TOP - 5, "end"));
  const each = timeStep(until - from);
  for (let at = Math.ceil(from / each) * each; at <= until; at += each) drawing.append(label(each >= 86400 ? new Date(at * 1000).toISOString().slice(5, 10) : minute(at), x(at), HIGH - 6));
}
function censored(drawing, past, x) {
  if (!past) return;
  past.start_s.forEach((at, i) => {
    if (!(past.censored[i] > 0)) return;
    const mark = svg("rect", { class: "censored-mark", x: x(at), y: HIGH - BOTTOM + 18, width: Math.max(1.5, x(at + STEP_S) - x(at)), height: 8, "fill-opacity": 0.35 + 0.65 * past.censored[i] });
    mark.append(svg("title", {}, document.createTextNode(`${minute(at)}: ${percent(past.censored[i])} of samples ran into the limit; demand is estimated`)));
    drawing.append(mark);
  });
}
function legend(leadMinutes) {
  const lead = leadMinutes % 60 ? `${leadMinutes} min` : `${leadMinutes / 60} h`;
  const items = [["demand", "demand"], ["peak", "its largest 5 s"], ["allocation", "allocation"], ["mean", "forecast mean"], ["highest", "peak stays below, 95 %"], ["before", `forecast ${lead} before, with its 80 % band`], ["censored", "ran into its limit"]];
  return el("ul", { class: "legend" }, items.map(([kind, text]) => el("li", {}, el("i", { class: `key ${kind}` }), text)), FAN.map(([, , name], i) => el("li", {}, el("i", { class: `key fan fan${i}` }), `${name} band`)), el("li", {}, "▲ more  ▼ less  ✕ refused"));
}

function moments({ lines, mean, highest, fan, past }) {
  const said = (value) => (known(value) ? String(+value.toPrecision(3)) : "unknown");
  const before = lines.demand.map(([at, value], i) => ({ at, text: `demand ${said(value)}, peak ${said(lines.peak[i][1])}, allocation ${said(lines.allocation[i][1])}, forecast before ${said(lines.before[i][1])}${past.censored[i] > 0 ? `, censored ${percent(past.censored[i])}` : ""}` }));
  const after = mean.map(([at, value], i) => ({ at, text: `forecast ${said(value)}, ${fan.map((each) => `${each.name} band ${said(each.rows[i][1])} to ${said(each.rows[i][2])}`).join(", ")}, peak below ${said(highest[i][1])}` }));
  return [...before, ...after];
}
function follow(drawing, readout, all, x, unit) {
  const cursor = svg("line", { class: "cursor", y1: TOP, y2: HIGH - BOTTOM, visibility: "hidden" });
  drawing.append(cursor);
  let at = all.length - 1;
  const show = () => {
    if (!all[at]) return;
    for (const name of ["x1", "x2"]) cursor.setAttribute(name, x(all[at].at));
    cursor.setAttribute("visibility", "visible");
    readout.textContent = `${minute(all[at].at)} UTC, ${unit.unit}: ${all[at].text}`;
  };
  drawing.addEventListener("pointermove", (event) => {
    const { left, width } = drawing.getBoundingClientRect();
    const wanted = ((event.clientX - left) / width) * WIDE;
    at = all.reduce((best, moment, i) => (Math.abs(x(moment.at) - wanted) < Math.abs(x(all[best].at) - wanted) ? i : best), 0);
    show();
  });
  drawing.addEventListener("keydown", (event) => {
    const by = { ArrowLeft: -1, ArrowRight: 1, Home: -all.length, End: all.length }[event.key];
    if (!by) return;
    event.preventDefault();
    at = Math.min(all.length - 1, Math.max(0, at + by));
    show();
  });
}
