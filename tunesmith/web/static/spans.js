// Mark spans of a text, by mouse or by keyboard. A span is [start, end, label] in UTF-16 units until it is sent.
import { announce, canUndo, choice, line, open, renew, showRow, shown, vote, waits } from "/static/desk.js";
import { find, make, rows } from "/static/parts.js";
import { bordersOf, nodeAt, partIn, unitOf, unitsOf, whole, wordsOf } from "/static/span-text.js";

const DIGITS = ["1", "2", "3", "4", "5", "6", "7", "8", "9", "0"];
const LONG = 420; // characters above which a text is shown in a smaller font
const HUES = 10;
const MOST = 10000; // spans in one text, as on the server
const MARGIN = 40; // pixels between the selection and the edge of the window
const SHOWN = 40; // characters of a span in messages

const added = []; // labels written on this page
const drafts = new Map(); // item -> { marks, past, stored }, until they are saved
let labels = [];
let text = "", borders = [], words = [], units = [];
let draft = { marks: [], past: [], stored: "[]" };
let selected = null; // [start, end]
let pressed = null; // what was selected before the button of the mouse went down
let anchor = -1, head = -1; // words between which the arrow keys select

// ---------------------------------------------------------------- marks

const meets = ([a, b], [c, d]) => a < d && c < b;
const isChanged = (one) => Boolean(one) && JSON.stringify(one.marks) !== one.stored; // since the server stored it
const quote = ([start, end]) => `“${text.slice(start, Math.min(end, start + SHOWN))}${end - start > SHOWN ? "…" : ""}”`;
const named = (span) => `${span[2]} ${quote(span)}`;

function change(marks, done) {
  if (waits()) return announce("Not changed: the server has not answered yet.");
  renew();
  draft.past.push(draft.marks);
  draft.marks = marks.toSorted((one, other) => one[0] - other[0]);
  render();
  announce(done);
}

function mark(label) {
  fromBrowser(); // a key may come before the event of the selection
  const span = selected && whole(text, borders, selected);
  if (!span) return announce("Nothing is selected: drag over a span, or press an arrow key, then the key of a label.");
  const wrong = problemOf(label);
  if (wrong) return announce(wrong);
  if (draft.marks.length >= MOST) return announce(`Not marked: a text can have ${rows(MOST, "span")}; save this one.`);
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
  if (waits()) return true;
  draft.marks = draft.past.pop();
  render();
  announce("Undone.");
  return true;
}

function save() {
  if (!shown()) return;
  const points = new Map(units.map((unit, point) => [unit, point]));
  const spans = draft.marks.map(([start, end, label]) => ({ start: points.get(start), end: points.get(end), label }));
  vote({ spans }, spans.length ? rows(spans.length, "span") : "no spans");
}

// ---------------------------------------------------------------- display

const hue = (label) => `hue-${Math.max(0, labels.indexOf(label)) % HUES}`;

function render() {
  const parts = [];
  let at = 0;
  for (const span of draft.marks) {
    parts.push(text.slice(at, span[0]));
    parts.push(make("mark", text.slice(span[0], span[1]), { "data-label": span[2], class: hue(span[2]), title: "click to select, click again to remove" }));
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
  units = unitsOf(text);
  selected = null;
  anchor = head = -1;
  // After an undo the server returns the spans that were saved, also to another tab or after a reload.
  const marks = item.spans.map(([start, end, label]) => [units[start], units[end], label]);
  draft = isChanged(drafts.get(item.key)) ? drafts.get(item.key) : { marks, stored: JSON.stringify(marks) };
  draft.past = [];
  drafts.set(item.key, draft);
  find("row").closest("article").classList.toggle("long", text.length > LONG);
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
  scroll();
  const there = touched();
  announce(`Selected: ${quote(span)}${there.length ? `, in ${there.map(named).join(", ")}` : ""}`);
}

// Scroll to the end of the selection that moves, above the buttons at the bottom of the window.
function scroll() {
  const lines = [...getSelection().getRangeAt(0).getClientRects()];
  const { top, bottom } = (head < anchor ? lines[0] : lines.at(-1)) ?? find("text").getBoundingClientRect();
  const low = Math.min(innerHeight, document.querySelector(".answers").getBoundingClientRect().top) - MARGIN;
  const by = Math.max(0, bottom - low) || Math.min(0, top - MARGIN);
  if (by) scrollBy({ top: by, behavior: "instant" }); // keys repeat faster than a smooth scroll ends
}

// Select the next or previous word, or add it to the selection.
function moveWord(step, extend) {
  if (!words.length) return;
  const from = head < 0 && step < 0 ? words.length : head;
  head = Math.min(words.length - 1, Math.max(0, from + step));
  if (!extend || anchor < 0) anchor = head;
  choose([words[Math.min(anchor, head)][0], words[Math.max(anchor, head)][1]]);
}

// Move the start (0) or the end (1) of the selection by one character.
function moveEnd(side, step) {
  if (!selected) return moveWord(step, false);
  const at = borders.findIndex((border) => border >= selected[side]) + step;
  const span = selected.with(side, borders[Math.min(borders.length - 1, Math.max(0, at))]);
  if (span[0] < span[1]) choose(span);
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
  if (!shown() || !selection.rangeCount) return;
  const span = partIn(root, selection.getRangeAt(0));
  if (!span || (selection.isCollapsed && !root.contains(selection.anchorNode))) return;
  if (selected && span[0] === selected[0] && span[1] === selected[1]) return;
  selected = span[0] < span[1] ? span : null;
  if (selected) follow();
}

// A press anywhere but on a button ends the selection; a drag that begins in it would move its text instead of selecting.
function restart(event) {
  if (!shown() || event.shiftKey || event.button !== 0 || event.target.closest("button, dialog")) return;
  if (event.detail === 1) pressed = selected;
  selected = null;
  getSelection().removeAllRanges();
  // The keys belong to an element over the text, which does not contain it.
  if (find("text").contains(event.target)) document.addEventListener("mouseup", () => find("row").focus({ preventScroll: true }), { once: true });
}

// A click on a mark selects it, another one removes it; a double click selects a word.
function clicked(event) {
  const on = event.target.closest("mark");
  if (!on || !getSelection().isCollapsed || event.detail > 1) return;
  const start = unitOf(find("text"), on, 0);
  const span = draft.marks.find((one) => one[0] === start);
  if (pressed?.[0] === span[0] && pressed[1] === span[1]) return remove([span]);
  choose([span[0], span[1]]);
  follow();
}

// Arrow keys may repeat, unlike single keys.
function arrows(event) {
  const step = { ArrowLeft: -1, ArrowRight: 1, ArrowUp: -1, ArrowDown: 1 }[event.key];
  if (event.ctrlKey || event.metaKey || !step || !shown() || (event.altKey && !event.shiftKey)) return;
  const vertical = event.key === "ArrowUp" || event.key === "ArrowDown";
  if (vertical && !event.altKey && !draft.marks.length) return; // scrolls
  event.preventDefault();
  const way = getComputedStyle(find("text")).direction === "rtl" ? -step : step;
  if (event.altKey) moveEnd(vertical ? 0 : 1, vertical ? step : way);
  else if (vertical) moveMark(step);
  else moveWord(way, event.shiftKey);
}

function key(pressed) {
  const index = DIGITS.indexOf(pressed), focus = document.activeElement;
  if (pressed === "Delete" || pressed === "Backspace") remove(touched());
  else if (pressed === "Enter" && !focus.matches("button, a, summary")) save();
  else if (index >= 0 && index < labels.length) mark(labels[index]);
  else return false;
  return true;
}

// What is wrong with a label, which the server would refuse with all spans of the text.
function problemOf(label) {
  if (label === "O") return "Not marked: the label O means no span; write another one.";
  if (/[\p{C}\p{Z}]/u.test(label.replace(/[ \u200c\u200d]/g, ""))) return "Not marked: the label contains a control character; write a word.";
  return "";
}

function written(word) {
  const label = word.replace(/\s+/g, " ");
  const wrong = problemOf(label);
  if (wrong) announce(wrong);
  if (wrong) return false;
  if (!labels.includes(label)) added.push(label);
  showLabels(labels);
  if (selected) mark(label);
  find("row").focus({ preventScroll: true });
  return true;
}

find("row").addEventListener("keydown", arrows);
document.addEventListener("mousedown", restart);
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
  again: save,
  saved: (item) => drafts.delete(item),
  unsaved: () => Boolean(shown()) && isChanged(draft),
  forget: () => drafts.clear(),
});
