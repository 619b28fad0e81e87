// What is wrong now, worst first, from what the API says. Pure: an operator at three in the morning reads this list and nothing else.
import { amount, known, minute, number, percent } from "./units.js";

// -> [{weight, word, text, href}]: weight 2 = bad, 1 = watch.
export function whatIsWrong({ fleet, hosts, sizing, alerts }) {
  const found = [];
  const say = (weight, word, text, href) => found.push({ weight, word, text, href });
  const silent = hosts.filter((host) => !host.alive);
  if (silent.length) say(2, "silent", `${silent.length} of ${hosts.length} hosts silent and counted as full: ${listed(silent.map((host) => host.id))}`, silent.length === 1 ? `#/host/${encodeURIComponent(silent[0].id)}` : "#/fleet");
  for (const alert of (alerts || []).filter((each) => each.state === "firing" && !each.silenced_by.length).slice(0, 5)) {
    say(alert.severity === "critical" ? 2 : 1, alert.severity, alert.summary, "#/alerts");
  }
  const scarce = sizing ? sizing.scarce : [];
  for (const short of scarce.slice(0, 3)) {
    say(2, "short ahead", `${short.host_id} lacks ${amount(short.missing, short.resource)} from ${minute(short.from_s)} to ${minute(short.until_s)}`, `#/host/${encodeURIComponent(short.host_id)}`);
  }
  if (scarce.length > 3) say(2, "short ahead", `${scarce.length - 3} more hosts will be short`, "#/plan");
  for (const lack of (sizing ? sizing.infeasible : []).slice(0, 2)) {
    say(2, "objective", `${lack.client}: cannot be met, ${amount(lack.missing, lack.resource)} missing at ${lack.where || "the fleet"} from ${minute(lack.from_s)}`, "#/clients");
  }
  const burning = (sizing ? sizing.budgets : []).filter((budget) => budget.burn_rate > 1 || budget.spent >= 1);
  if (burning.length) say(burning.some((budget) => budget.spent >= 1) ? 2 : 1, "budget", `${burning.length} clients burn their error budget too fast: ${listed(burning.map((budget) => `${budget.client || "none"} (${number(budget.burn_rate, 1)} ×, ${percent(budget.spent)} spent)`))}`, "#/clients");
  const unsafe = (sizing ? sizing.spare : []).filter((spare) => spare.missing > 0);
  if (unsafe.length) say(1, "no spare", `pool ${unsafe[0].pool} could not take the VMs of ${unsafe[0].worst_host}: ${amount(unsafe[0].missing, unsafe[0].resource)} missing`, "#/plan");
  const paused = hosts.filter((host) => host.paused || host.paused_by.length);
  if (paused.length) say(1, "paused", `kill switch on ${paused.length === hosts.length ? "the whole fleet" : listed(paused.map((host) => host.id))}: nothing is changed there`, paused.length === 1 ? `#/host/${encodeURIComponent(paused[0].id)}` : "#/fleet");
  const lost = hosts.filter((host) => host.spool_dropped > 0);
  if (lost.length) say(1, "samples lost", `spool was full on ${listed(lost.map((host) => host.id))}`, `#/host/${encodeURIComponent(lost[0].id)}`);
  if (fleet && !known(fleet.last_cycle_s)) say(1, "starting", "no decision cycle has ended yet", "#/fleet");
  return found.sort((a, b) => b.weight - a.weight);
}
const listed = (names) => (names.length <= 3 ? names.join(", ") : `${names.slice(0, 3).join(", ")} and ${names.length - 3} more`);
