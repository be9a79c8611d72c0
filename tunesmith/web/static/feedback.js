import { choice, currentVote, open, vote } from "/static/desk.js";
import { find, make } from "/static/parts.js";

// Key, value sent to the server, text on the page.
const OF_TWO = [["1", "left", "Answer 1 is better"], ["2", "right", "Answer 2 is better"], ["0", "tie", "Equally good"], ["b", "bad", "Both are bad"]];
const OF_ONE = [["1", "good", "Good"], ["2", "bad", "Bad"]];
// Elements that an answer may contain; everything else is text.
const TAGS = new Set(["p", "ul", "ol", "li", "blockquote", "strong", "em", "s", "table", "thead", "tbody", "tr", "th", "td", "h4", "pre", "code", "br", "hr"]);
const ROLES = { user: "", system: "System", assistant: "Assistant", tool: "Tool" };

let choices = OF_TWO;

function build(node) {
  if (typeof node === "string") return document.createTextNode(node);
  const made = make(TAGS.has(node.tag) ? node.tag : "span");
  if (node.start !== undefined && node.start !== 1) made.setAttribute("start", node.start);
  made.append(...node.parts.map(build));
  return made;
}

function show(item) {
  choices = item.answers.length === 2 ? OF_TWO : OF_ONE;
  find("turns").replaceChildren(...item.turns.map(turn));
  find("pair").classList.toggle("alone", item.answers.length === 1);
  find("pair").replaceChildren(...item.answers.map((nodes, index) => answer(nodes, item.answers.length === 2 ? `Answer ${index + 1}` : "Answer")));
  find("labels").replaceChildren(...choices.map(([key, name, word]) => choice(key, word, () => vote({ choice: name }, word), currentVote() === word)));
  find("begin-with").replaceChildren(...item.plain.map((text, index) => start(text, item.plain.length === 2 ? `Start from answer ${index + 1}` : "Start from this answer")));
}

function turn({ role, text }) {
  const made = make("div", "", { class: `turn ${role}` });
  if (ROLES[role]) made.append(make("p", ROLES[role], { class: "role" }));
  made.append(make("p", text, { class: "words", dir: "auto" }));
  return made;
}

function answer(nodes, name) {
  const made = make("article", "", { class: "panel answer", "aria-label": name });
  const body = make("div", "", { class: "body", dir: "auto" });
  body.append(...nodes.map(build));
  made.append(make("h2", name, { class: "eyebrow" }), body);
  return made;
}

function start(text, word) {
  const button = make("button", word, { type: "button" });
  button.addEventListener("click", () => {
    find("word").value = text;
    find("word").focus();
  });
  return button;
}

function key(pressed) {
  const chosen = choices.find(([name]) => name === pressed);
  if (chosen) vote({ choice: chosen[1] }, chosen[2]);
  return Boolean(chosen);
}

find("word").addEventListener("keydown", (event) => {
  if (event.key !== "Enter" || !(event.ctrlKey || event.metaKey) || !find("word").value.trim()) return;
  event.preventDefault();
  find("ask").close("give");
});

open({
  noun: "prompt",
  verb: "judged",
  done: (progress) => progress.votes,
  finished: ["Every prompt is judged", "Thank you. Run tunesmith votes summary for the results."],
  show, key,
  written: (text) => vote({ choice: "own", text }, "your own answer"),
});
