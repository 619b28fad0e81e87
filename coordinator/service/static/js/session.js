// The caller: a token, kept in this tab only (sessionStorage ends with the tab), and the role that it was found to have.
const KEY = "tidegate.token";
const LADDER = ["viewer", "operator", "admin"];
const changes = new EventTarget();
let role = null; // null = not known: without a token nothing can be changed

function stored() {
  try {
    return sessionStorage.getItem(KEY);
  } catch (error) {
    if (error instanceof DOMException) return null; // storage is switched off: the token lives until the page is left
    throw error;
  }
}
let token = stored();

function keep(value) {
  try {
    if (value) sessionStorage.setItem(KEY, value);
    else sessionStorage.removeItem(KEY);
  } catch (error) {
    if (!(error instanceof DOMException)) throw error;
  }
}
export const headers = () => (token ? { Authorization: `Bearer ${token}` } : {});
export const hasToken = () => Boolean(token);
export const roleNow = () => role;
export const may = (least) => Boolean(token) && (role === "unknown" || LADDER.indexOf(role) >= LADDER.indexOf(least));
export function setToken(value) {
  token = value || null;
  role = null;
  keep(token);
  changes.dispatchEvent(new Event("token"));
}
export function setRole(value) {
  if (value === role) return;
  role = value;
  changes.dispatchEvent(new Event("role"));
}
export const onChange = (what, act) => changes.addEventListener(what, act);
