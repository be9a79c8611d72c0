import { choice, line, open, shown, vote } from "/static/desk.js";
import { find, make, rows } from "/static/parts.js";

const DIGITS = ["1", "2", "3", "4", "5", "6", "7", "8", "9", "0"];
const LONG = 420; // characters from which on a row is set smaller

let labels = [];

const give = (label) => vote({ label }, label);

function show(item, state) {
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
  labels = state.labels;
  find("no-labels").hidden = labels.length > 0;
  find("labels").replaceChildren(...labels.map((label, place) => choice(DIGITS[place], label, () => give(label))));
  find("known").replaceChildren(...labels.map((label) => make("option", "", { value: label })));
}

function facts(progress) {
  const most = Math.max(1, ...Object.values(progress.labels));
  find("by-label").replaceChildren(...Object.entries(progress.labels).map((entry) => line(entry, most)));
}

function key(pressed) {
  const place = DIGITS.indexOf(pressed);
  if (place < 0 || !shown() || place >= labels.length) return false;
  give(labels[place]);
  return true;
}

open({
  noun: "row",
  verb: "labelled",
  done: (progress) => progress.labelled,
  finished: ["Every row has a label", "The labelled rows can be loaded below, and tunesmith tune reads them."],
  undecided: (progress, left) => progress.tied > 0 && progress.tied === left && [`On ${rows(progress.tied)} people disagree`, "As many say one label as another, so these have none. One more person settles them: start tunesmith label with --raters one higher, or change a label."],
  show, facts, key,
  written: give,
});
