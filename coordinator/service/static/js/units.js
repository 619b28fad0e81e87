// Numbers and times as people read them. Unknown is null and shown as "–" or "?", never as 0; -1 is "unlimited".
export const RESOURCES = {
  cpu_millicores: { name: "CPU", unit: "cores", scale: 1e-3 },
  memory_bytes: { name: "Memory", unit: "GiB", scale: 2 ** -30 },
  disk_bytes_per_s: { name: "Disk", unit: "MB/s", scale: 1e-6 },
  net_rx_bits_per_s: { name: "Network in", unit: "Mbit/s", scale: 1e-6 },
  net_tx_bits_per_s: { name: "Network out", unit: "Mbit/s", scale: 1e-6 },
};
const KIND = {
  vcpus: ["vCPUs", 1, ""], cpu_quota: ["CPU quota", 1e-3, "cores"], cpu_shares: ["CPU shares", 1, ""],
  memory: ["memory", 2 ** -30, "GiB"], net_rx: ["net in", 1e-6, "Mbit/s"], net_tx: ["net out", 1e-6, "Mbit/s"],
  disk_bytes: ["disk", 1e-6, "MB/s"], disk_ops: ["disk operations", 1, "/s"], vcpus_online: ["vCPUs online", 1, ""],
  virtio_mem: ["virtio-mem", 2 ** -30, "GiB"], dimm: ["DIMMs", 2 ** -30, "GiB"], memory_high: ["memory.high", 2 ** -30, "GiB"],
};
export const known = (value) => value !== null && value !== undefined;
const digits = (value) => (Math.abs(value) >= 100 ? 0 : Math.abs(value) >= 10 ? 1 : 2);
export const number = (value, places) => (known(value) ? value.toLocaleString("en", { maximumFractionDigits: places ?? digits(value) }) : "–");
const even = (value) => value.toLocaleString("en", { minimumFractionDigits: digits(value), maximumFractionDigits: digits(value) });
export const inUnit = (value, scale) => (!known(value) ? "?" : value === -1 ? "unlimited" : scale === 1 ? number(value) : even(value * scale));
export const percent = (share, places = 0) => (known(share) ? `${number(share * 100, places)} %` : "–");
export const words = (code) => code.replaceAll("_", " ");
export const clock = (seconds) => (known(seconds) ? new Date(seconds * 1000).toISOString().slice(11, 19) : "–");
export const minute = (seconds) => clock(seconds).slice(0, 5);
export const date = (seconds) => new Date(seconds * 1000).toISOString().slice(0, 10);
export const moment = (seconds) => (known(seconds) ? `${date(seconds)} ${clock(seconds)}` : "–");
export function span(seconds) {
  if (!known(seconds)) return "unknown";
  const s = Math.max(0, Math.round(seconds));
  if (s < 90) return `${s} s`;
  if (s < 5400) return `${Math.round(s / 60)} min`;
  return s < 172800 ? `${number(s / 3600, 1)} h` : `${number(s / 86400, 1)} days`;
}
export function change(kind, before, after) {
  const [name, scale, unit] = KIND[kind] || [words(kind), 1, ""];
  return `${name} ${inUnit(before, scale)} → ${inUnit(after, scale)} ${unit}`.trim();
}
export const resourceOf = (whole, name) => whole.resources.find((entry) => entry.resource === name) || {};
export const amount = (value, resource) => `${inUnit(value, RESOURCES[resource].scale)} ${RESOURCES[resource].unit}`;
// Which levers a resource is changed by.
export const LEVERS = {
  cpu_millicores: ["vcpus", "cpu_quota", "cpu_shares", "vcpus_online", "cpu_period"], memory_bytes: ["memory", "virtio_mem", "dimm", "memory_high"],
  disk_bytes_per_s: ["disk_bytes", "disk_ops", "disk_weight"],
  net_rx_bits_per_s: ["net_rx"], net_tx_bits_per_s: ["net_tx"],
};
