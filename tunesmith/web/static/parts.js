// Parts that pages share: asking the server, the name, keys, and saying what happened.
// Text from rows only ever becomes text: nothing in here or in a page writes markup.

export const find = (id) => document.getElementById(id);

// One tab, one id, in memory only: a duplicated tab must not be taken for this one.
export const tab = Array.from(crypto.getRandomValues(new Uint8Array(12)), (byte) => byte.toString(16).padStart(2, "0")).join("");

const HEADERS = { "content-type": "application/json", "x-tunesmith": "1" };

export class Refused extends Error {}

const PATIENCE = 30000; // milliseconds: a line that hangs looks like a page that works

// The answer of /api/PATH as an object. Throws Refused with the server's words, or an Error where the same may be asked
// again: nobody answers, or the votes cannot be written now.
export async function ask(path, body) {
  let answer;
  try {
    answer = await fetch(`/api/${path}`, { method: "POST", headers: HEADERS, body: JSON.stringify(body), signal: AbortSignal.timeout(PATIENCE) });
  } catch {
    throw new Error("The server does not answer. Nothing was lost; start it again, then try again.");
  }
  const found = await answer.json().catch(() => ({}));
  const refused = String(found.detail ?? `The server refused (${answer.status}).`);
  if (answer.status >= 500) throw new Error(refused);
  if (!answer.ok) throw new Refused(refused);
  return found;
}

// Tell the server while the page closes; nobody waits for the answer.
export function tell(path, body) {
  fetch(`/api/${path}`, { method: "POST", headers: HEADERS, body: JSON.stringify(body), keepalive: true }).catch(() => {});
}

export function recall(key) {
  try { return localStorage.getItem(key) ?? ""; } catch { return ""; }
}

export function keep(key, value) {
  try { localStorage.setItem(key, value); } catch { /* private windows may keep nothing: then it is asked again */ }
}

// An element with text and attributes.
export function make(name, text = "", attributes = {}) {
  const made = document.createElement(name);
  made.textContent = text;
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  return made;
}

export const count = (number) => new Intl.NumberFormat("en").format(number);

export function rows(number, word = "row") {
  return `${count(number)} ${word}${number === 1 ? "" : "s"}`;
}

// Calls act(key) for single keys, but never while somebody writes, holds a modifier or lets a key repeat.
export function onKeys(act, isOn) {
  document.addEventListener("keydown", (event) => {
    const writes = event.target.closest?.("input:not([type=checkbox]), textarea, select, dialog");
    if (!isOn() || writes || event.repeat || event.ctrlKey || event.metaKey || event.altKey || event.isComposing) return;
    if (act(event.key.length === 1 ? event.key.toLowerCase() : event.key)) event.preventDefault();
  });
}
