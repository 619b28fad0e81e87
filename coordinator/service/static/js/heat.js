// A heat map of hosts on a canvas: one cell each, its number in it, the fullest first. A canvas, because 1,000 hosts are 1,000 cells.
//
// Colour never stands alone: the cell has its percentage, full ones a frame, and the legend says the word, the range and how many.
import { el } from "./dom.js";
import { known, percent } from "./units.js";

const WIDTH = 46;
const HEIGHT = 24;
const GAP = 2;
export const BANDS = [
  { name: "full", least: 0.95, colour: "red" },
  { name: "high", least: 0.8, colour: "amber" },
  { name: "busy", least: 0.5, colour: "tide" },
  { name: "easy", least: 0, colour: "green" },
];
const UNKNOWN = { name: "unknown", colour: "grey" };
const SILENT = { name: "silent", colour: "grey" };
const LEGEND = [SILENT, ...BANDS, UNKNOWN];
const RANGE = { full: "from 95 %", high: "80 to 95 %", busy: "50 to 80 %", easy: "below 50 %", unknown: "not known", silent: "counts as full" };

// cell: {id, share (null = unknown), silent}. Pure.
export const bandOf = ({ share, silent }) => (silent ? SILENT : known(share) ? BANDS.find((band) => share >= band.least) || BANDS[3] : UNKNOWN);
const rank = (cell) => (cell.silent ? 2000 : known(cell.share) ? cell.share : -1);

export function heatMap(id, title) {
  const canvas = el("canvas", { id, role: "img", "aria-label": title });
  const legend = el("ul", { class: "legend", id: `${id}-legend` });
  const told = el("p", { class: "muted note", id: `${id}-told` }, "Point at a cell to read it; the table of hosts below has the same numbers.");
  const box = el("div", { class: "heat" }, el("h4", {}, title), legend, el("div", { class: "heat-box scroll" }, canvas), told);
  let cells = [];
  const at = (event) => {
    const { left, top } = canvas.getBoundingClientRect();
    const [column, row] = [Math.floor((event.clientX - left) / (WIDTH + GAP)), Math.floor((event.clientY - top) / (HEIGHT + GAP))];
    const columns = columnsOf(canvas);
    return column < columns ? cells[row * columns + column] : undefined;
  };
  canvas.addEventListener("click", (event) => { const cell = at(event); if (cell) location.hash = `#/host/${encodeURIComponent(cell.id)}`; });
  canvas.addEventListener("pointermove", (event) => { const cell = at(event); if (cell) told.textContent = `${cell.id}: ${say(cell)}`; });
  let key = "";
  return { box, show: (newest) => {
    cells = [...newest].sort((a, b) => rank(b) - rank(a) || (a.id < b.id ? -1 : 1));
    const style = getComputedStyle(document.documentElement);
    const now = `${canvas.parentElement.clientWidth} ${style.getPropertyValue("--ink")} ${JSON.stringify(cells)}`;
    if (now === key) return; // a thousand cells are drawn only where something has changed
    key = now;
    showLegend(canvas, legend, cells, title);
    draw(canvas, cells, (name) => style.getPropertyValue(`--${name}`).trim());
  } };
}
const say = (cell) => (cell.silent ? "silent, counts as full" : known(cell.share) ? `${percent(cell.share)}, ${bandOf(cell).name}` : "not known");
const columnsOf = (canvas) => Math.max(1, Math.floor((canvas.parentElement.clientWidth + GAP) / (WIDTH + GAP)));

function showLegend(canvas, legend, cells, title) {
  const counts = new Map(LEGEND.map((band) => [band, 0]));
  for (const cell of cells) counts.set(bandOf(cell), counts.get(bandOf(cell)) + 1);
  const shown = LEGEND.filter((band) => counts.get(band));
  legend.replaceChildren(...shown.map((band) => el("li", {}, el("i", { class: `swatch ${band.name}` }), el("b", {}, `${counts.get(band)} ${band.name}`), ` ${RANGE[band.name]}`)));
  canvas.setAttribute("aria-label", `${title}: ${shown.map((band) => `${counts.get(band)} ${band.name}`).join(", ") || "no hosts"}`);
}
function draw(canvas, cells, colour) {
  const columns = columnsOf(canvas);
  const scale = window.devicePixelRatio || 1;
  const [wide, high] = [columns * (WIDTH + GAP), Math.max(1, Math.ceil(cells.length / columns)) * (HEIGHT + GAP)];
  Object.assign(canvas, { width: wide * scale, height: high * scale });
  Object.assign(canvas.style, { width: `${wide}px`, height: `${high}px` });
  const pen = canvas.getContext("2d");
  pen.scale(scale, scale);
  Object.assign(pen, { font: "600 11px system-ui, sans-serif", textAlign: "center", textBaseline: "middle" });
  cells.forEach((cell, i) => {
    const band = bandOf(cell);
    const [x, y] = [(i % columns) * (WIDTH + GAP), Math.floor(i / columns) * (HEIGHT + GAP)];
    pen.fillStyle = colour(`${band.colour}-soft`);
    pen.fillRect(x, y, WIDTH, HEIGHT);
    if (band.name === "full" || band.name === "silent") {
      Object.assign(pen, { strokeStyle: colour("red"), lineWidth: 2 });
      pen.strokeRect(x + 1, y + 1, WIDTH - 2, HEIGHT - 2);
    }
    pen.fillStyle = colour(band.name === "silent" ? "red" : band.colour);
    pen.fillText(cell.silent ? "silent" : known(cell.share) ? percent(cell.share) : "?", x + WIDTH / 2, y + HEIGHT / 2 + 1);
  });
}
