import { ask, count, find, keep, make, onKeys, recall, rows, tab, tell } from "/static/parts.js";

const NAME = "tunesmith.rater", KEYS = "tunesmith.keys", FACTS = "tunesmith.facts";
const DIGITS = ["1", "2", "3", "4", "5", "6", "7", "8", "9", "0"];
const LONG = 420; // characters from which on a row is set smaller

let rater = recall(NAME);
let state = null; // the server's last answer
let since = 0; // when the row came up
let busy = false;
let pending = null; // what is tried again after a fault
const given = new Map(); // row -> the label that this page gave it, shown when an undo brings it back

const who = () => ({ rater, tab });
const keysOn = () => find("keys").checked;

// ---------------------------------------------------------------- asking

// Do one thing; only when the server has answered does the page say that it is done.
async function act(path, extra, done) {
  if (busy) return;
  busy = true;
  pending = () => act(path, extra, done);
  try {
    state = await ask(path, { ...who(), ...extra });
    pending = null;
    find("fault").hidden = true;
    show();
    find("said").textContent = done;
  } catch (error) {
    fault(error.message);
  } finally {
    busy = false;
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

function vote(label) {
  if (!state?.item) return;
  const seconds = Math.min((performance.now() - since) / 1000, 3600);
  given.set(state.item.key, label);
  act("vote", { item: state.item.key, label, seconds }, `Saved: ${label}.`);
}

function skip() {
  if (state?.item) act("skip", { item: state.item.key }, "Skipped: others may get this row.");
}

// ---------------------------------------------------------------- showing

function show() {
  const item = state.item;
  find("work").hidden = !item;
  find("end").hidden = Boolean(item);
  find("undo").disabled = !state.undo;
  find("end-undo").hidden = !state.undo;
  showProgress(state.progress);
  if (item) showRow(item);
  else showEnd(state.progress);
}

function showRow(item) {
  find("text").textContent = item.text;
  find("row").classList.toggle("long", item.text.length > LONG);
  find("where").textContent = item.where;
  const beside = item.beside.filter(([, value]) => value);
  find("beside").hidden = !beside.length;
  find("beside").replaceChildren(...beside.map(([name, value]) => {
    const part = make("div");
    part.append(make("dt", name), make("dd", value, { dir: "auto" }));
    return part;
  }));
  showLabels();
  since = performance.now();
  find("row").focus({ preventScroll: true });
  window.scrollTo({ top: 0 });
}

function showLabels() {
  find("no-labels").hidden = state.labels.length > 0;
  find("labels").replaceChildren(...state.labels.map((label, place) => {
    const button = make("button", "", { type: "button" });
    if (place < DIGITS.length) {
      button.append(make("kbd", DIGITS[place]));
      button.setAttribute("aria-keyshortcuts", DIGITS[place]);
    }
    button.append(make("span", label, { dir: "auto" }));
    button.classList.toggle("given", given.get(state.item.key) === label);
    button.addEventListener("click", () => vote(label));
    return button;
  }));
  find("known").replaceChildren(...state.labels.map((label) => make("option", "", { value: label })));
}

function showEnd(progress) {
  const end = find("end"), open = progress.items - progress.labelled;
  const [title, text] = open > 0 && !progress.skipped
    ? ["Nothing for you right now", "The rows that are left are with other people."]
    : open > 0
      ? ["Only skipped rows are left", `You put ${rows(progress.skipped)} aside.`]
      : ["Every row has a label", "The labelled rows can be loaded below, and tunesmith tune reads them."];
  end.querySelector("h2").textContent = title;
  end.querySelector("p").textContent = text;
  find("skipped").hidden = !progress.skipped;
  find("skipped").textContent = `Look at the ${count(progress.skipped)} skipped`;
  find("check").hidden = open === 0;
  end.focus({ preventScroll: true });
}

function showProgress(progress) {
  document.querySelector(".how-far").hidden = false;
  find("done").textContent = `${count(progress.labelled)} labelled`;
  find("left").textContent = `of ${rows(progress.items)}`;
  find("bar").max = progress.items;
  find("bar").value = progress.labelled;
  const most = Math.max(1, ...Object.values(progress.labels));
  find("by-label").replaceChildren(...Object.entries(progress.labels).map((entry) => line(entry, most)));
  find("by-person").replaceChildren(...Object.entries(progress.people).map((entry) => line(entry)));
  find("agreement").textContent = agreed(progress.agreement);
  find("facts").hidden = false;
}

function line([name, number], most = 0) {
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
  if (!found.items) return "No row has labels of two people yet, so how far they agree is not known.";
  const alpha = found.alpha === null ? "not defined, only one label was given" : found.alpha.toFixed(2);
  return `On ${rows(found.items)} that several people labelled they agree ${Math.round(100 * found.same)} % of the time; Krippendorff's alpha: ${alpha} (0 is chance, 0.80 and more is reliable).`;
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

find("who").addEventListener("submit", (event) => {
  event.preventDefault();
  const given = find("rater").value.trim().replace(/\s+/g, " ");
  if (!given) return;
  if (rater && rater !== given) tell("release", who());
  rater = given;
  keep(NAME, rater);
  begin();
});

// ---------------------------------------------------------------- hands

function openAsk() {
  if (!state?.item) return;
  find("word").value = "";
  find("ask").showModal();
}

find("ask").addEventListener("close", () => {
  const label = find("word").value.trim();
  if (find("ask").returnValue === "give" && label) vote(label);
  find("ask").returnValue = "";
});

function onKey(key) {
  if (!find("who").hidden) return false;
  const place = DIGITS.indexOf(key);
  if (place >= 0 && state?.item && place < state.labels.length) vote(state.labels[place]);
  else if (key === "u") undo();
  else if (key === "s" && state?.item) skip();
  else if (key === "e" && state?.item) openAsk();
  else return false;
  return true;
}

find("other").addEventListener("click", openAsk);
find("cancel").addEventListener("click", () => find("ask").close());
find("skip").addEventListener("click", skip);
find("undo").addEventListener("click", undo);
find("end-undo").addEventListener("click", undo);
find("skipped").addEventListener("click", skipped);
find("check").addEventListener("click", next);
find("again").addEventListener("click", () => pending?.());
find("rename").addEventListener("click", askName);
find("keys").checked = recall(KEYS) !== "off";
find("keys").addEventListener("change", showKeys);
find("facts").open = recall(FACTS) === "open";
find("facts").addEventListener("toggle", () => keep(FACTS, find("facts").open ? "open" : "shut"));
window.addEventListener("pagehide", () => rater && tell("release", who()));
window.addEventListener("pageshow", (event) => event.persisted && rater && next());

function showKeys() {
  keep(KEYS, keysOn() ? "on" : "off");
  document.body.classList.toggle("no-keys", !keysOn());
}

showKeys();
onKeys(onKey, keysOn);
if (rater) begin();
else askName();
