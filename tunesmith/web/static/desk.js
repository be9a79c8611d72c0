// What every page of votes does: asks for the next item, sends votes, knows the person, shows how far it is.
import { Refused, ask, count, find, keep, make, onKeys, recall, rows, tab, tell } from "/static/parts.js";

const NAME = "tunesmith.rater", KEYS = "tunesmith.keys", FACTS = "tunesmith.facts";

let page = null; // how this page shows an item, what it calls one, and which keys it has
let rater = recall(NAME);
let state = null; // the server's last answer
let since = 0; // when the item came up
let busy = false;
let pending = null; // what is tried again after a fault
const drafts = new Map(); // item -> what was written about it and is not saved yet
const given = new Map(); // item -> what this page said about it, shown when an undo brings it back

const who = () => ({ rater, tab });
const keysOn = () => find("keys").checked;
export const shown = () => state?.item ?? null;
export const said = () => given.get(state.item.key);

// ---------------------------------------------------------------- asking

// Do one thing; only when the server has answered does the page say that it is done.
async function act(path, extra, done) {
  if (busy) return;
  busy = true;
  pending = () => act(path, extra, done);
  const asking = rater;
  try {
    const answer = await ask(path, { ...who(), ...extra });
    if (asking !== rater) return; // what comes for one person is not shown to the next
    state = answer;
    pending = null;
    if (path === "vote") drafts.delete(extra.item);
    find("fault").hidden = true;
    show();
    find("said").textContent = done;
  } catch (error) {
    if (asking !== rater) return;
    // What was refused would be again; and an undo whose answer was lost may be done, and would take back one more.
    if (path === "undo" || (error instanceof Refused && path !== "next")) pending = next;
    fault(error.message);
  } finally {
    busy = false;
    if (asking !== rater) next();
  }
}

function fault(text) {
  find("fault").querySelector("p").textContent = text;
  find("fault").hidden = false;
  find("again").focus();
}

const next = () => act("next", {}, "");
const skipped = () => act("next", { skipped: true }, "");
const undo = () => state?.undo && act("undo", {}, "Taken back.");

// Send a vote on what is shown; `word` is what it says, for people.
export function vote(body, word) {
  if (busy || !state?.item) return; // one at a time: what is not sent must not be remembered as said
  const seconds = Math.min((performance.now() - since) / 1000, 3600);
  given.set(state.item.key, word);
  act("vote", { item: state.item.key, seconds, ...body }, `Saved: ${word}.`);
}

function skip() {
  if (state?.item) act("skip", { item: state.item.key }, `Skipped: others may get this ${page.noun}.`);
}

// ---------------------------------------------------------------- showing

function show() {
  const item = state.item;
  find("work").hidden = !item;
  find("end").hidden = Boolean(item);
  find("undo").disabled = !state.undo;
  find("end-undo").hidden = !state.undo;
  showProgress(state.progress);
  if (item) {
    page.show(item, state);
    since = performance.now();
    find("row").focus({ preventScroll: true });
    window.scrollTo({ top: 0 });
  } else showEnd(state.progress);
}

function showEnd(progress) {
  const end = find("end"), open = total(progress) - page.done(progress);
  const [title, text] = (!progress.skipped && page.undecided?.(progress, open)) || (open > 0 && !progress.skipped
    ? ["Nothing for you right now", `The ${page.noun}s that are left are with other people.`]
    : open > 0
      ? [`Only skipped ${page.noun}s are left`, `You put ${rows(progress.skipped, page.noun)} aside.`]
      : page.finished);
  end.querySelector("h2").textContent = title;
  end.querySelector("p").textContent = text;
  find("skipped").hidden = !progress.skipped;
  find("skipped").textContent = `Look at the ${count(progress.skipped)} skipped`;
  find("check").hidden = open === 0;
  end.focus({ preventScroll: true });
}

// Where several people are to judge the same items there is more to do than there are items.
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

// A row of a table: a name and a number, with a bar where the largest number is known.
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

function agreed(found) {
  if (!found.items) return `No ${page.noun} has votes of two people yet, so how far they agree is not known.`;
  const alpha = found.alpha === null ? "not defined, only one vote was given" : found.alpha.toFixed(2);
  return `On ${rows(found.items, page.noun)} that several people ${page.verb} they agree ${Math.round(100 * found.same)} % of the time; Krippendorff's alpha: ${alpha} (0 is chance, 0.80 and more is reliable).`;
}

// A button with its key; `word` is pressed when an undo brings the item back.
export function choice(key, word, act) {
  const button = make("button", "", { type: "button" });
  if (key) {
    button.append(make("kbd", key));
    button.setAttribute("aria-keyshortcuts", key);
  }
  button.append(make("span", word, { dir: "auto" }));
  button.classList.toggle("given", said() === word);
  button.addEventListener("click", act);
  return button;
}

// ---------------------------------------------------------------- the person

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
    tell("release", who());
    given.clear();
    drafts.clear();
    state = pending = null; // the item on the page is not theirs
  }
  rater = name;
  keep(NAME, rater);
  begin();
}

// ---------------------------------------------------------------- hands

function openAsk() {
  if (busy || !state?.item) return; // a vote on its way brings the next one, and this answer would be its
  find("word").value = drafts.get(state.item.key) ?? "";
  find("ask").showModal();
}

function closedAsk() {
  const word = find("word").value.trim();
  if (state?.item) drafts.set(state.item.key, word); // what the server refuses, or does not hear, is not lost
  if (find("ask").returnValue === "give" && word) page.written(word);
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

// Begin. A page says: noun and verb of an item, done(progress), finished [title, text], show(item, state), key(key),
// written(text), and may have facts(progress) and undecided(progress, left), the end's [title, text] where people disagree.
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
  window.addEventListener("pagehide", () => rater && tell("release", who()));
  window.addEventListener("pageshow", (event) => event.persisted && rater && next());
  showKeys();
  onKeys(onKey, keysOn);
  if (rater) begin();
  else askName();
}
