// Helpers shared by all pages: requests, local storage, elements and keys.
// Text from rows only becomes text nodes: no code here or in a page writes markup.

export const find = (id) => document.getElementById(id);

// Id of the tab, kept in memory only: a duplicated tab needs its own.
export const tab = Array.from(crypto.getRandomValues(new Uint8Array(12)), (byte) => byte.toString(16).padStart(2, "0")).join("");

const HEADERS = { "content-type": "application/json", "x-tunesmith": "1" };

export class Refused extends Error {}

const TIMEOUT = 30000; // milliseconds; without it a hanging connection is invisible to the rater

// Post to /api/PATH and return the response as an object. Throws Refused with the message of the server, or an Error if a
// retry may help: no response, or the store is temporarily not writable.
export async function ask(path, body) {
  let answer;
  try {
    answer = await fetch(`/api/${path}`, { method: "POST", headers: HEADERS, body: JSON.stringify(body), signal: AbortSignal.timeout(TIMEOUT) });
  } catch {
    throw new Error("The server does not answer. Saved votes are not lost; restart it, then try again.");
  }
  const reply = await answer.json().catch(() => ({}));
  const refused = String(reply.detail ?? `The server rejected the request (${answer.status}).`);
  if (answer.status >= 500) throw new Error(refused);
  if (!answer.ok) throw new Refused(refused);
  return reply;
}

// Send a message while the page closes, without waiting for a response.
export function send(path, body) {
  fetch(`/api/${path}`, { method: "POST", headers: HEADERS, body: JSON.stringify(body), keepalive: true }).catch(() => {});
}

export function recall(key) {
  try { return localStorage.getItem(key) ?? ""; } catch { return ""; }
}

export function keep(key, value) {
  try { localStorage.setItem(key, value); } catch { /* unavailable in private windows: the rater enters the name again */ }
}

// Create an element with text and attributes.
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

// Call act(key) for single keys, except in text fields, with a modifier, or while a key repeats.
export function onKeys(act, isOn) {
  document.addEventListener("keydown", (event) => {
    const writes = event.target.closest?.("input:not([type=checkbox]), textarea, select, dialog");
    if (!isOn() || writes || event.repeat || event.ctrlKey || event.metaKey || event.altKey || event.isComposing) return;
    if (act(event.key.length === 1 ? event.key.toLowerCase() : event.key)) event.preventDefault();
  });
}
