// Shared by all annotation pages: requests items, sends votes, stores the rater, shows progress.
import { Refused, ask, count, find, keep, make, onKeys, recall, rows, send, tab } from "/static/parts.js";

const RENEW = 60000; // milliseconds between renewals of a reservation
const NAME = "tunesmith.rater", KEYS = "tunesmith.keys", FACTS = "tunesmith.facts";

let page = null; // the options passed to open()
let rater = recall(NAME);
let state = null; // the last response of the server
let since = 0; // when the item was shown, in milliseconds
let busy = false;
let pending = null; // repeated by Try again after an error
const drafts = new Map(); // item -> unsaved text
let renewed = 0; // when the reservation of the item was renewed, in milliseconds
const given = new Map(); // item -> vote cast on this page, highlighted after an undo

const who = () => ({ rater, tab });
const keysOn = () => find("keys").checked;
export const shown = () => state?.item ?? null;
export const waits = () => busy;
export const currentVote = () => given.get(state.item.key);

// ---------------------------------------------------------------- requests

// Send one request; the page confirms the action only after the response.
async function act(path, extra, done) {
  if (busy) return;
  busy = true;
  pending = (path === "vote" && page.again) || (() => act(path, extra, done));
  const sender = rater;
  try {
    const answer = await ask(path, { ...who(), ...extra });
    if (sender !== rater) return; // a response for one rater is not shown to the next
    state = answer;
    pending = null;
    if (path === "vote") {
      drafts.delete(extra.item);
      page.saved?.(extra.item);
    }
    find("problem").hidden = true;
    show();
    find("status").textContent = done;
  } catch (error) {
    if (sender !== rater) return;
    // A rejected request would be rejected again. An undo with a lost response may have succeeded; a retry would undo
    // one more action.
    if (path === "undo" || (error instanceof Refused && path !== "next")) pending = next;
    showProblem(error.message);
  } finally {
    busy = false;
    if (sender !== rater) next();
  }
}

function showProblem(text) {
  find("problem").querySelector("p").textContent = text;
  find("problem").hidden = false;
  find("again").focus();
}

const next = () => act("next", {}, "");
const skipped = () => act("next", { skipped: true }, "");
const undo = () => page.undo?.() || (state?.undo && act("undo", {}, "Undone."));

// Keep the item reserved for this tab while the rater changes something, with at most one request per minute.
export async function renew() {
  const item = state?.item;
  if (!item || busy || performance.now() - renewed < RENEW) return;
  renewed = performance.now();
  const answer = await ask("renew", { ...who(), item: item.key }).catch(() => null); // tried again with a later change
  if (answer?.held === false && shown() === item && !busy) announce(`This ${page.noun} is now assigned to another rater too, as nothing was changed for ten minutes. Whoever saves first is counted.`);
}

// Enable the undo of a change that is not saved yet, which `page.undo()` takes back.
export const canUndo = (own) => { find("undo").disabled = !(own || state?.undo); };

// Write one line under the buttons, which screen readers announce.
export const announce = (text) => { find("status").textContent = text; };

// Send a vote on the current item; `word` is its label on the page.
export function vote(body, word) {
  if (busy || !state?.item) return; // one request at a time; a vote that is not sent must not be remembered
  const seconds = Math.min((performance.now() - since) / 1000, 3600);
  given.set(state.item.key, word);
  act("vote", { item: state.item.key, seconds, ...body }, `Saved: ${word}.`);
}

function skip() {
  if (state?.item) act("skip", { item: state.item.key }, `Skipped: this ${page.noun} may be assigned to other raters.`);
}

// ---------------------------------------------------------------- display

function show() {
  const item = state.item;
  find("work").hidden = !item;
  find("end").hidden = Boolean(item);
  find("undo").disabled = !state.undo;
  find("end-undo").hidden = !state.undo;
  showProgress(state.progress);
  if (item) {
    page.show(item, state);
    since = renewed = performance.now();
    find("row").focus({ preventScroll: true });
    window.scrollTo({ top: 0 });
  } else showEnd(state.progress);
}

function showEnd(progress) {
  const end = find("end"), open = total(progress) - page.done(progress);
  const [title, text] = (!progress.skipped && page.undecided?.(progress, open)) || (open > 0 && !progress.skipped
    ? ["No items for you at the moment", `The remaining ${page.noun}s are assigned to other raters.`]
    : open > 0
      ? [`Only skipped ${page.noun}s remain`, `You skipped ${rows(progress.skipped, page.noun)}.`]
      : page.finished);
  end.querySelector("h2").textContent = title;
  end.querySelector("p").textContent = text;
  find("skipped").hidden = !progress.skipped;
  find("skipped").textContent = `Show the ${count(progress.skipped)} skipped`;
  find("check").hidden = open === 0;
  end.focus({ preventScroll: true });
}

// With several raters per item there are more votes to cast than items.
const total = (progress) => progress.wanted ?? progress.items;

function showProgress(progress) {
  document.querySelector(".how-far").hidden = false;
  find("done").textContent = `${count(page.done(progress))} ${page.verb}`;
  find("left").textContent = `of ${rows(total(progress), total(progress) > progress.items ? "vote" : page.noun)}`;
  find("bar").max = total(progress);
  find("bar").value = page.done(progress);
  page.facts?.(progress);
  find("by-person").replaceChildren(...Object.entries(progress.people).map((entry) => line(entry)));
  find("agreement").textContent = agreed(progress.agreement);
  find("facts").hidden = false;
}

// A table row with a name and a number, and a bar if the maximum is given.
export function line([name, number], most = 0) {
  const made = make("tr");
  made.append(make("th", name, { scope: "row", dir: "auto" }), make("td", count(number), { class: "n" }));
  if (most) {
    const cell = make("td"), track = make("span", "", { class: "track", "aria-hidden": "true" }), fill = make("i", "", { class: "fill" });
    fill.style.width = `${(100 * number) / most}%`;
    track.append(fill);
    cell.append(track);
    made.append(cell);
  }
  return made;
}

function agreed(agreement) {
  if (page.agreed && agreement.items) return page.agreed(agreement);
  if (!agreement.items) return `No ${page.noun} has votes of two raters yet, so agreement is unknown.`;
  const alpha = agreement.alpha === null ? "undefined, only one label was given" : agreement.alpha.toFixed(2);
  return `Agreement of raters on ${rows(agreement.items, page.noun)}: ${Math.round(100 * agreement.same)} % of the votes; Krippendorff's alpha: ${alpha} (0 is chance, 0.80 or more is reliable).`;
}

// Show the place of a row in its file, and its further columns.
export function showRow(item) {
  find("where").textContent = item.where;
  const context = item.beside.filter(([, value]) => value);
  find("context").hidden = !context.length;
  find("context").replaceChildren(...context.map(([name, value]) => {
    const part = make("div");
    part.append(make("dt", name), make("dd", value, { dir: "auto" }));
    return part;
  }));
}

// A button with its key; highlighted if `given`.
export function choice(key, word, act, given = false) {
  const button = make("button", "", { type: "button" });
  if (key) {
    button.append(make("kbd", key));
    button.setAttribute("aria-keyshortcuts", key);
  }
  button.append(make("span", word, { dir: "auto" }));
  button.classList.toggle("given", given);
  button.addEventListener("click", act);
  return button;
}

// ---------------------------------------------------------------- rater

function askName() {
  find("who").hidden = false;
  find("work").hidden = true;
  find("end").hidden = true;
  find("me").hidden = true;
  find("rater").value = rater;
  find("rater").focus();
}

function begin() {
  find("who").hidden = true;
  find("me").hidden = false;
  find("my-name").textContent = rater;
  next();
}

function named(event) {
  event.preventDefault();
  const name = find("rater").value.trim().replace(/\s+/g, " ");
  if (!name) return;
  if (rater && rater !== name) {
    send("release", who());
    given.clear();
    drafts.clear();
    page.forget?.();
    state = pending = null; // the item on the page belongs to the previous rater
  }
  rater = name;
  keep(NAME, rater);
  begin();
}

// ---------------------------------------------------------------- input

function openAsk() {
  if (busy || !state?.item) return; // the response to a pending vote replaces the item, and the text would go to the wrong one
  find("word").value = drafts.get(state.item.key) ?? "";
  find("ask").showModal();
}

function closedAsk() {
  const word = find("word").value.trim();
  if (state?.item) drafts.set(state.item.key, word); // restored if the server rejects the vote or the request fails
  if (find("ask").returnValue === "give" && word && page.written(word)) drafts.delete(state.item.key);
  find("ask").returnValue = "";
}

function onKey(key) {
  if (!find("who").hidden) return false;
  if (key === "u") undo();
  else if (!state?.item) return false;
  else if (key === "s") skip();
  else if (key === "e") openAsk();
  else return page.key(key);
  return true;
}

function showKeys() {
  keep(KEYS, keysOn() ? "on" : "off");
  document.body.classList.toggle("no-keys", !keysOn());
}

// Start a page. Options: noun and verb of an item, done(progress), finished [title, text], show(item, state), key(key),
// written(text), true if the text is used up; optional: facts(progress), undecided(progress, left), the final
// [title, text] if raters disagree, undo(), true if the page had something unsaved to undo, forget(), called before
// another rater starts, agreed(agreement), again(), which repeats a vote after an error with what the page shows then,
// saved(item), called after a vote, and unsaved(), true if closing the page would lose something.
export function open(made) {
  page = made;
  const clicks = { other: openAsk, cancel: () => find("ask").close(), skip, undo, "end-undo": undo, skipped, check: next, again: () => pending?.(), rename: askName };
  for (const [id, act] of Object.entries(clicks)) find(id).addEventListener("click", act);
  find("who").addEventListener("submit", named);
  find("ask").addEventListener("close", closedAsk);
  find("keys").checked = recall(KEYS) !== "off";
  find("keys").addEventListener("change", showKeys);
  find("facts").open = recall(FACTS) === "open";
  find("facts").addEventListener("toggle", () => keep(FACTS, find("facts").open ? "open" : "shut"));
  window.addEventListener("beforeunload", (event) => page.unsaved?.() && event.preventDefault());
  window.addEventListener("pagehide", () => rater && send("release", who()));
  window.addEventListener("pageshow", (event) => event.persisted && rater && next());
  showKeys();
  onKeys(onKey, keysOn);
  if (rater) begin();
  else askName();
}
