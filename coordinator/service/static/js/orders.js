// Whoever changes something is asked first, in words that say what will happen; and only who may is offered it.
import { $, el } from "./dom.js";
import { findRole, forget, logout, write } from "./api.js";
import { hasToken, may, roleNow, setRole, setToken } from "./session.js";

// The button of an order: for those who may. Others get the way to log in, or nothing where their role would be refused.
export function orderButton(text, act, login = `Log in to ${text.toLowerCase().replace("…", "")}`, least = "operator") {
  if (may(least)) return el("button", { type: "button", class: "order", onclick: act }, text);
  return hasToken() ? null : el("button", { type: "button", class: "order quiet", onclick: askToken }, login);
}

// What is about to be ordered, as lines; resolves to what the coordinator answered, or null where it was not done.
export function confirmed(title, told, yes, method, path, body) {
  const dialog = $("confirm");
  const wrong = el("p", { class: "wrong", role: "alert" });
  const form = el("form", { method: "dialog" }, el("h3", { id: "confirm-title" }, title), told.map((line) => el("p", {}, line)), wrong,
    el("p", { class: "choices" }, el("button", { value: "no", autofocus: true }, "Leave as it is"), el("button", { value: "yes", class: "danger" }, yes)));
  dialog.replaceChildren(form);
  dialog.showModal();
  return new Promise((resolve) => {
    form.addEventListener("submit", async (event) => {
      if (!event.submitter || event.submitter.value !== "yes") return resolve(null);
      event.preventDefault();
      event.submitter.disabled = true;
      try {
        resolve(await write(method, path, body));
        dialog.close();
      } catch (error) {
        wrong.textContent = `Not done. ${error.problem && error.problem.code ? `${error.problem.code}: ` : ""}${error.message}`;
        event.submitter.disabled = false;
        if (error.status !== 401) return;
        dialog.close();
        invalid();
      }
    });
    dialog.addEventListener("cancel", () => resolve(null), { once: true });
  });
}

export function askToken() {
  $("token-form").hidden = false;
  $("token").focus();
}
// The form and the account's place in the header. `turn`: reads everything anew.
export function startSession(turn) {
  $("token-form").addEventListener("submit", (event) => {
    event.preventDefault();
    $("token-wrong").textContent = "";
    forget();
    setToken($("token").value.trim());
    $("token").value = "";
    $("token-form").hidden = true;
    learnRole().then(turn);
  });
  $("logout").addEventListener("click", () => { logout(); showAccount(); turn(); });
  $("login").addEventListener("click", askToken);
  showAccount();
}
export async function learnRole() {
  if (hasToken() && roleNow() === null) {
    try {
      setRole(await findRole());
    } catch (error) {
      if (error.status !== 401) throw error;
      invalid();
    }
  }
  showAccount();
}
function invalid() {
  setToken(null);
  showAccount();
  askToken();
  $("token-wrong").textContent = "That token is not valid, or no longer.";
}
function showAccount() {
  $("role").textContent = !hasToken() ? "not logged in" : roleNow() === "unknown" || roleNow() === null ? "logged in" : roleNow();
  $("logout").hidden = !hasToken();
  $("login").hidden = hasToken();
}
