// Why a VM's forecast is what it is, and why it got what it got.
import { readOr } from "./api.js";
import { badge, cell, el, lines, num, panel, pick, scroll, setCells, sub, syncRows, table } from "./dom.js";
import { stamp } from "./freshness.js";
import { hasToken } from "./session.js";
import { RESOURCES, change, clock, inUnit, known, number, percent } from "./units.js";

const LEFT_OUT = { cut: "left out: errs too much", silent: "nothing to say yet", unscored: "not scored anywhere yet" };
const SLOW_MS = 10000; // a forecast changes once in five minutes, and its telling asks a worker

export function toldPanel(id) {
  let last = null;
  const panel_ = panel("told", "Why this forecast", pick("told-target", "Of the", { mean: "bucket mean", peak: "peak until then" }, "mean", () => { if (last) fill(last); }));
  const list = el("ul", { class: "told", id: "told" });
  const all = el("a", { id: "told-link", hidden: true }, "all of it, as JSON");
  const members = table("members", "models behind the forecast", ["Minutes ahead", "Model", ["Weight", "num", "share of the blend; sums to 100 % in each part of the hour"], ["Error", "num", "mean absolute error of late on this VM"],
    ["× first", "num", "error over that of the first model: the last value, of peaks the usual peak over the mean"], ["Score", "num", "error that the weight follows, over the best one's"], ["Scored on", "num", "buckets it was scored on, older ones faded"]]);
  panel_.body.append(list, scroll("models behind the forecast", "mid", members), el("p", { class: "note" }, all));
  const fill = (told) => showTold(panel_, list, all, members, told);
  return { root: panel_.root, show: async (resource) => {
    const answer = await readOr(`vms/${encodeURIComponent(id)}/forecast/why?resource=${resource}`, SLOW_MS);
    if (!answer) return;
    last = answer.data;
    fill(last);
    stamp(panel_, { at: answer.at, made: last.issued_s, everyMs: SLOW_MS });
  } };
}
function showTold(panel_, list, all, members, told) {
  const found = told.resources[0];
  panel_.count.textContent = found ? RESOURCES[found.resource].name : "";
  all.hidden = !found || hasToken(); // a link carries no token
  if (found) all.href = `/api/v1/vms/${encodeURIComponent(told.vm_id)}/forecast/why?resource=${found.resource}`;
  const texts = found ? [...found.summary, ...(told.not_now ? [`No details now: ${told.not_now}.`] : [])] : [];
  lines(list, texts.map((text) => el("li", {}, text)), "Nothing can be told yet.");
  const wanted = panel_.root.querySelector("select").value;
  const target = found && found.details ? found.details.targets.find((entry) => entry.target === wanted) : null;
  const rows = (target ? target.parts : []).flatMap((part) => membersOf(part, RESOURCES[found.resource]));
  syncRows(members.tBodies[0], rows, (row) => row.key, (row, { minutes, name, note, weight, error, ratio, score, evidence }) => {
    const shown = (value) => num(known(value) ? value.toFixed(2) : "–");
    setCells(row, () => document.createTextNode(minutes), [cell(el("span", {}, el("b", {}, name), note ? sub(` ${note}`) : null)), num(percent(weight)), num(error), shown(ratio), shown(score), num(number(evidence, 0))]);
  }, "No details now.");
}
// Members, network and LightGBM's own quantiles of one part of the hour as rows, the heaviest first.
function membersOf(part, { scale, unit }) {
  const left = part.network ? 1 - part.network.weight : 1;
  const pooled = part.leaves ? left * (1 - part.leaves.weight) : left;
  const own = part.leaves ? left * part.leaves.weight : 0; // LightGBM speaks twice, in the pool and by its own quantiles: one model, one row
  const twice = part.members.some((member) => member.member === "boosting");
  const noteOf = (member) => (part.leaves && member.member === "boosting" ? `${percent(own)} by its own quantiles` : LEFT_OUT[member.state] || "");
  const row = (name, note, weight, more) => ({ key: `${part.minutes}/${name}`, minutes: part.minutes, name, note, weight, error: "–", ratio: null, score: null, ...more });
  const members = part.members.map((member) => row(member.member, noteOf(member), member.weight * pooled + (member.member === "boosting" ? own : 0),
    { error: known(member.error) ? `${inUnit(member.error, scale)} ${unit}` : "–", ratio: member.error_to_naive, score: member.score, evidence: member.evidence }));
  const network = part.network ? [row("network", "", part.network.weight, { evidence: part.network.evidence })] : [];
  const leaves = part.leaves && !twice ? [row("boosting", "by its own quantiles", own, { evidence: part.leaves.evidence })] : [];
  return [...network, ...leaves, ...members].sort((a, b) => b.weight - a.weight);
}

export function receiptsPanel(id) {
  const panel_ = panel("receipts", "Why it got what it got");
  const list = el("div", { class: "scroll mid", id: "receipts", tabIndex: 0, role: "group", "aria-label": "decisions about this VM" });
  panel_.body.append(list);
  return { root: panel_.root, show: async () => {
    const answer = await readOr(`receipts?limit=12&vm=${encodeURIComponent(id)}`, 1000);
    if (!answer) return;
    const cards = answer.data.map((receipt) => el("article", { class: "receipt" },
      el("header", {}, el("b", {}, clock(receipt.issued_s)), receipt.shadow ? badge("shadow", "shadowed", "observe mode: nothing was sent to act") : null,
        el("span", { class: "muted" }, receipt.steps.length ? receipt.steps.map((step) => change(step.kind, step.before, step.value)).join("; ") : "no change")),
      el("ol", {}, receipt.trail.map((line) => el("li", {}, line)), receipt.refused.map((line) => el("li", { class: "no" }, `not taken: ${line}`)))));
    list.replaceChildren(...(cards.length ? cards : [el("p", { class: "receipt muted" }, "No decision about this VM yet.")]));
    stamp(panel_, { at: answer.at });
  } };
}
