// Mark spans of a text, by mouse or by keyboard. A span is [start, end, label] in UTF-16 units until it is sent.
import { announce, canUndo, choice, line, open, showRow, shown, vote } from "/static/desk.js";
import { find, make, rows } from "/static/parts.js";
import { bordersOf, nodeAt, toPoints, unitOf, whole, wordsOf } from "/static/span-text.js";

const DIGITS = ["1", "2", "3", "4", "5", "6", "7", "8", "9", "0"];
const LONG = 420; // characters above which a text is shown in a smaller font
const HUES = 10;
const SHOWN = 40; // characters of a span in messages

const added = []; // labels written on this page
const drafts = new Map(); // item -> { marks, past }: kept after saving, so that an undo brings them back
let labels = [];
let text = "", borders = [], words = [];
let draft = { marks: [], past: [] };
let selected = null; // [start, end]
let anchor = -1, head = -1; // words between which the arrow keys select

// ---------------------------------------------------------------- marks

const meets = ([a, b], [c, d]) => a < d && c < b;
const quote = ([start, end]) => `“${text.slice(start, Math.min(end, start + SHOWN))}${end - start > SHOWN ? "…" : ""}”`;
const named = (span) => `${span[2]} ${quote(span)}`;

function change(marks, done) {
  draft.past.push(draft.marks);
  draft.marks = marks.toSorted((one, other) => one[0] - other[0]);
  render();
  announce(done);
}

function mark(label) {
  const span = selected && whole(text, borders, selected);
  if (!span) return announce("Nothing is selected: drag over a span, or press an arrow key, then the key of a label.");
  const made = [...span, label];
  const same = draft.marks.find(([start, end]) => start === span[0] && end === span[1]);
  if (same?.[2] === label) return announce(`${named(made)} is marked already.`);
  const other = draft.marks.find((one) => one !== same && meets(one, span));
  if (other) {
    const nested = (other[0] <= span[0] && span[1] <= other[1]) || (span[0] <= other[0] && other[1] <= span[1]);
    return announce(`Not marked: the selection ${nested ? "is nested with" : "overlaps"} ${named(other)}, and a character has one label only; remove that one first.`);
  }
  selected = span;
  change([...draft.marks.filter((one) => one !== same), made], `Marked: ${named(made)}.`);
}

function remove(gone) {
  if (!gone.length) return announce("Nothing to remove: no mark is selected.");
  change(draft.marks.filter((one) => !gone.includes(one)), `Removed: ${gone.map(named).join(", ")}.`);
}

function undo() {
  if (!shown() || !draft.past.length) return false;
  draft.marks = draft.past.pop();
  render();
  announce("Undone.");
  return true;
}

function save() {
  if (!shown()) return;
  const spans = draft.marks.map(([start, end, label]) => ({ start: toPoints(text, start), end: toPoints(text, end), label }));
  vote({ spans }, spans.length ? rows(spans.length, "span") : "no spans");
}

// ---------------------------------------------------------------- display

const hue = (label) => `hue-${Math.max(0, labels.indexOf(label)) % HUES}`;

function render() {
  const parts = [];
  let at = 0;
  for (const span of draft.marks) {
    parts.push(text.slice(at, span[0]));
    parts.push(make("mark", text.slice(span[0], span[1]), { "data-label": span[2], class: hue(span[2]), title: "click to remove" }));
    at = span[1];
  }
  find("text").replaceChildren(...parts, text.slice(at));
  find("text").normalize();
  find("marks").replaceChildren(...draft.marks.map((span) => {
    const item = make("li"), button = make("button", "", { type: "button", "aria-label": `Remove ${named(span)}`, class: hue(span[2]) });
    button.append(make("b", span[2], { dir: "auto" }), make("span", quote(span).slice(1, -1), { dir: "auto" }), make("span", "×", { "aria-hidden": "true" }));
    button.addEventListener("click", () => { remove([span]); find("row").focus(); });
    item.append(button);
    return item;
  }));
  find("save").querySelector("span").textContent = draft.marks.length ? `Save ${rows(draft.marks.length, "span")}` : "Save: no spans in this text";
  canUndo(draft.past.length > 0);
  select();
}

// Show the selection of the page as that of the browser.
function select() {
  const selection = getSelection();
  if (!selected) return;
  selection.setBaseAndExtent(...nodeAt(find("text"), selected[0]), ...nodeAt(find("text"), selected[1]));
}

function showLabels(known) {
  labels = [...known, ...added.filter((label) => !known.includes(label))];
  find("no-labels").hidden = labels.length > 0;
  find("labels").replaceChildren(...labels.map((label, index) => {
    const button = choice(DIGITS[index], label, () => { mark(label); find("row").focus({ preventScroll: true }); });
    button.classList.add(hue(label));
    return button;
  }));
  find("known").replaceChildren(...labels.map((label) => make("option", "", { value: label })));
}

function show(item, state) {
  ({ text } = item);
  borders = bordersOf(text);
  words = wordsOf(text);
  selected = null;
  anchor = head = -1;
  draft = drafts.get(item.key) ?? { marks: [], past: [] };
  draft.past = [];
  drafts.set(item.key, draft);
  find("row").parentElement.classList.toggle("long", text.length > LONG);
  showRow(item);
  getSelection().removeAllRanges();
  showLabels(state.labels);
  render();
}

function facts(progress) {
  const most = Math.max(1, ...Object.values(progress.labels));
  find("by-label").replaceChildren(...Object.entries(progress.labels).map((entry) => line(entry, most)));
}

// ---------------------------------------------------------------- selection

const touched = () => draft.marks.filter((one) => selected && meets(one, selected));

function choose(span) {
  selected = span;
  select();
  nodeAt(find("text"), span[1])[0].parentElement.scrollIntoView({ block: "nearest" });
  const there = touched();
  announce(`Selected: ${quote(span)}${there.length ? `, in ${there.map(named).join(", ")}` : ""}`);
}

// Select the next or previous word, or add it to the selection.
function moveWord(step, extend) {
  if (!words.length) return;
  const from = head < 0 && step < 0 ? words.length : head;
  head = Math.min(words.length - 1, Math.max(0, from + step));
  if (!extend || anchor < 0) anchor = head;
  choose([words[Math.min(anchor, head)][0], words[Math.max(anchor, head)][1]]);
}

// Move the end of the selection by one character.
function moveEnd(step) {
  if (!selected) return moveWord(step, false);
  const at = borders.findIndex((border) => border >= selected[1]);
  const end = borders[Math.min(borders.length - 1, at + step)];
  if (end > selected[0]) choose([selected[0], end]);
}

function moveMark(step) {
  const { marks } = draft;
  if (!marks.length) return announce("No span is marked in this text.");
  const place = selected ?? [0, 0];
  const next = step > 0 ? marks.find(([start]) => start > place[0]) ?? marks[0] : marks.findLast(([start]) => start < place[0]) ?? marks.at(-1);
  choose([next[0], next[1]]);
  follow();
}

// Continue with the arrow keys where the mouse, or a jump, has selected.
function follow() {
  anchor = words.findIndex(([, end]) => end > selected[0]);
  head = words.findLastIndex(([start]) => start < selected[1]);
}

function fromBrowser() {
  const selection = getSelection(), root = find("text");
  if (!shown() || !selection.rangeCount || !root.contains(selection.anchorNode) || !root.contains(selection.focusNode)) return;
  const range = selection.getRangeAt(0);
  const span = [unitOf(root, range.startContainer, range.startOffset), unitOf(root, range.endContainer, range.endOffset)];
  if (selected && span[0] === selected[0] && span[1] === selected[1]) return;
  selected = span[0] < span[1] ? span : null;
  if (selected) follow();
}

// A drag that begins in the selection would move its text instead of selecting.
function restart(event) {
  if (event.shiftKey || event.button !== 0) return;
  selected = null;
  getSelection().removeAllRanges();
}

function clicked(event) {
  const on = event.target.closest("mark");
  if (!on || !getSelection().isCollapsed) return;
  const start = unitOf(find("text"), on, 0);
  remove(draft.marks.filter((one) => one[0] === start));
}

// Arrow keys may repeat, unlike single keys.
function arrows(event) {
  const step = { ArrowLeft: -1, ArrowRight: 1, ArrowUp: -1, ArrowDown: 1 }[event.key];
  if (event.ctrlKey || event.metaKey || !step || !shown() || (event.altKey && !event.shiftKey)) return;
  event.preventDefault();
  if (event.key === "ArrowUp" || event.key === "ArrowDown") moveMark(step);
  else if (event.altKey) moveEnd(step);
  else moveWord(getComputedStyle(find("text")).direction === "rtl" ? -step : step, event.shiftKey);
}

function key(pressed) {
  const index = DIGITS.indexOf(pressed), focus = document.activeElement;
  if (pressed === "Delete" || pressed === "Backspace") remove(touched());
  else if (pressed === "Enter" && !focus.matches("button, a, summary")) save();
  else if (index >= 0 && index < labels.length) mark(labels[index]);
  else return false;
  return true;
}

function written(label) {
  if (!labels.includes(label)) added.push(label);
  showLabels(labels);
  if (selected) mark(label);
  find("row").focus({ preventScroll: true });
  return true;
}

find("row").addEventListener("keydown", arrows);
find("text").addEventListener("mousedown", restart);
find("text").addEventListener("click", clicked);
find("save").addEventListener("click", save);
document.addEventListener("selectionchange", fromBrowser);

const percent = (share) => `${Math.round(100 * share)} %`;

open({
  noun: "text",
  verb: "marked",
  done: (progress) => progress.labelled,
  finished: ["Every text is marked", "Download the marked texts below, or pass them to tunesmith tune."],
  undecided: (progress, left) => progress.tied > 0 && progress.tied === left && [`On ${rows(progress.tied, "text")} raters disagree`, "Spans without a majority are not written. Add a rater: restart tunesmith label with --raters increased by one, or change a mark."],
  agreed: (agreement) => `Agreement of raters on ${rows(agreement.items, "text")}: F1 ${percent(agreement.exact_f1)} of spans with the same ends and label; ${percent(agreement.overlap_f1)} if a span of the same label that overlaps counts.`,
  show, facts, key, undo, written,
  forget: () => drafts.clear(),
});
