// /api/v1: reads, kept for as long as the asker says; writes; and what this coordinator offers at all, by its own OpenAPI document.
import { headers, hasToken, setToken } from "./session.js";

const KEPT = 64; // answers kept at a time; the oldest goes
const TIMEOUT_MS = 10000; // an answer that takes longer is none
const kept = new Map();
const denied = new Set(); // paths that the caller's role may not see
const wanting = new EventTarget();
let paths = null;
let era = 0; // answers to who asked before a login or a write are not kept for who asks after it

export class Refused extends Error {
  constructor(status, path, problem) {
    super(problem && problem.detail ? problem.detail : `${status} for ${path}`);
    Object.assign(this, { status, path, problem });
  }
}
export const onTokenWanted = (act) => wanting.addEventListener("token", act);

async function ask(url, options = {}) {
  const response = await fetch(url, { ...options, headers: { ...headers(), ...options.headers }, signal: AbortSignal.timeout(TIMEOUT_MS) });
  if (response.ok) return response.json();
  if (response.status === 401) wanting.dispatchEvent(new Event("token"));
  const text = await response.text();
  throw new Refused(response.status, url, text.startsWith("{") ? JSON.parse(text) : null);
}

// {data, at}: the answer and when it came, by the browser's clock. `withinMs`: one that is no older will do.
export async function read(path, withinMs = 0) {
  const found = kept.get(path);
  if (found && Date.now() - found.at < withinMs) return found;
  const asked = era;
  const answer = { data: await ask(`/api/v1/${path}`), at: Date.now() };
  if (asked !== era) return answer;
  kept.delete(path);
  kept.set(path, answer);
  if (kept.size > KEPT) kept.delete(kept.keys().next().value);
  return answer;
}
export const forget = () => { era += 1; kept.clear(); denied.clear(); };

// As read; null where there is nothing (404), or where the caller's role may not see it (403).
export async function readOr(path, withinMs = 0) {
  const [plain] = path.split("?");
  if (denied.has(plain)) return null; // it was said once
  const asked = era;
  try {
    return await read(path, withinMs);
  } catch (error) {
    if (!(error instanceof Refused) || ![403, 404].includes(error.status)) throw error;
    if (error.status === 403 && asked === era) denied.add(plain);
    return null;
  }
}
export async function write(method, path, body) {
  const bytes = crypto.getRandomValues(new Uint8Array(16)); // a retry by the network is no second order
  const key = [...bytes].map((byte) => byte.toString(16).padStart(2, "0")).join("");
  const told = { method, body: JSON.stringify(body), headers: { "Content-Type": "application/json", "Idempotency-Key": key } };
  const answer = await ask(`/api/v1/${path}`, told);
  forget();
  return answer;
}

// Whether this coordinator has a path, such as "/clients": older ones lack some, and asking them would only fill the console with 404.
export async function offers(path) {
  if (paths === null) paths = new Set(Object.keys((await ask("/openapi.json")).paths));
  return paths.has(`/api/v1${path}`);
}
// On older coordinators any valid token may write.
export async function findRole() {
  if (!hasToken()) return null;
  return (await offers("/whoami")) ? (await read("whoami")).data.role : "unknown";
}
export const logout = () => { forget(); setToken(null); };
