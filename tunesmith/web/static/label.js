import { choice, currentVote, line, open, showRow, shown, vote } from "/static/desk.js";
import { find, make, rows } from "/static/parts.js";

const DIGITS = ["1", "2", "3", "4", "5", "6", "7", "8", "9", "0"];
const LONG = 420; // characters above which a row is shown in a smaller font

let labels = [];

const give = (label) => vote({ label }, label);

function show(item, state) {
  find("text").textContent = item.text;
  find("row").classList.toggle("long", item.text.length > LONG);
  showRow(item);
  labels = state.labels;
  find("no-labels").hidden = labels.length > 0;
  find("labels").replaceChildren(...labels.map((label, index) => choice(DIGITS[index], label, () => give(label), currentVote() === label)));
  find("known").replaceChildren(...labels.map((label) => make("option", "", { value: label })));
}

function facts(progress) {
  const most = Math.max(1, ...Object.values(progress.labels));
  find("by-label").replaceChildren(...Object.entries(progress.labels).map((entry) => line(entry, most)));
}

function key(pressed) {
  const index = DIGITS.indexOf(pressed);
  if (index < 0 || !shown() || index >= labels.length) return false;
  give(labels[index]);
  return true;
}

open({
  noun: "row",
  verb: "labelled",
  done: (progress) => progress.labelled,
  finished: ["Every row has a label", "Download the labelled rows below, or pass them to tunesmith tune."],
  undecided: (progress, left) => progress.tied > 0 && progress.tied === left && [`On ${rows(progress.tied)} raters disagree`, "Tied votes give no label. Add a rater: restart tunesmith label with --raters increased by one, or change a label."],
  show, facts, key,
  written: give,
});
