// adjust_resources by hand: first a dry run that says what would be sent, then, asked again, the order itself.
import { write } from "./api.js";
import { el } from "./dom.js";
import { confirmed, orderButton } from "./orders.js";
import { may } from "./session.js";
import { change } from "./units.js";

const FIELDS = [["vcpus", "vCPUs", 1, 1], ["memory_bytes", "Memory, GiB", 2 ** 30, 0.25], ["cpu_quota_millicores", "CPU quota, cores", 1000, 0.1]];

export function showOrders(panel, id, turn) {
  const path = `vms/${encodeURIComponent(id)}/resources`;
  if (!may("operator")) {
    panel.body.replaceChildren(el("p", { class: "note" }, "What the VM gets can be set by an operator, for as long as its plan does not say otherwise. "), el("p", { class: "note choices" }, orderButton("Adjust…", () => null)));
    return;
  }
  const inputs = FIELDS.map(([field, name, scale, step]) => {
    const input = el("input", { id: `adjust-${field}`, type: "number", min: step, step, size: 7, inputMode: "decimal" });
    return { field, scale, input, label: el("label", { class: "pick" }, `${name} `, input) };
  });
  const result = el("div", { id: "adjust-result", class: "note", role: "status" });
  const order = el("button", { type: "button", class: "order danger", hidden: true }, "Send it…");
  const form = el("form", { class: "note choices" }, inputs.map((each) => each.label), el("button", { type: "submit", class: "order" }, "Try (dry run)"), order);
  const body = () => Object.fromEntries(inputs.filter(({ input }) => input.value !== "").map(({ field, scale, input }) => [field, Math.round(Number(input.value) * scale)]));
  let tried = null;
  form.addEventListener("input", () => { order.hidden = true; result.textContent = ""; });
  form.addEventListener("submit", async (event) => {
    event.preventDefault();
    order.hidden = true;
    try {
      const asked = body();
      const answer = await write("POST", path, { ...asked, dry_run: true });
      tried = { asked, steps: answer.steps };
      const said = answer.steps.map((step) => change(step.kind, step.before, step.value));
      result.replaceChildren(el("p", {}, said.length ? `Would be sent to ${answer.host_id}: ${said.join("; ")}.` : "Nothing would change."), el("ol", {}, answer.trail.map((line) => el("li", {}, line))));
      order.hidden = !said.length;
    } catch (error) {
      result.replaceChildren(el("p", { class: "wrong" }, `Refused. ${error.problem && error.problem.code ? `${error.problem.code}: ` : ""}${error.message}`));
    }
  });
  order.addEventListener("click", async () => {
    const told = [...tried.steps.map((step) => change(step.kind, step.before, step.value)), "Sent is not done: what the host answers stands among the steps."];
    const done = await confirmed(`Send this to ${id}?`, told, "Send it", "POST", path, { ...tried.asked, dry_run: false });
    if (!done) return;
    order.hidden = true;
    result.textContent = "Sent. The host's answer follows among the steps.";
    turn();
  });
  panel.body.replaceChildren(form, result);
}
