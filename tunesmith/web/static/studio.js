// The page of the studio: headers of its requests, uploads, the playground.
// Text from models and rows only becomes text nodes.
import { find, make, count } from "./parts.js";

const OWN = { "x-tunesmith": "1" };

document.addEventListener("htmx:config:request", (event) => {
  Object.assign(event.detail.ctx.request.headers, OWN);
  find("problem").replaceChildren();
});
document.addEventListener("htmx:error", (event) => {
  const ctx = event.detail.ctx;
  if (ctx?.request?.action?.startsWith?.("/queue")) return;
  problem("The server does not answer. Runs continue without it; start `tunesmith studio` again.");
});

function problem(text) {
  const line = make("p", text);
  line.className = "problem";
  find("problem").replaceChildren(line);
}

// Copy buttons.
document.addEventListener("click", async (event) => {
  const button = event.target.closest("[data-copy]");
  if (!button) return;
  await navigator.clipboard.writeText(button.dataset.copy);
  button.textContent = "copied";
  setTimeout(() => { button.textContent = "copy"; }, 1500);
});

// Uploads, in pieces that the server appends to a file.
const CHUNK = 4 * 2 ** 20;

async function upload(file) {
  const bar = find("upload");
  bar.hidden = false;
  try {
    for (let start = 0; start === 0 || start < file.size; start += CHUNK) {
      const query = new URLSearchParams({ name: file.name, start });
      await post(`/data/upload?${query}`, file.slice(start, start + CHUNK), "application/octet-stream");
      bar.value = Math.min(1, (start + CHUNK) / Math.max(1, file.size));
    }
    const made = await (await post("/data/uploaded", new URLSearchParams({ name: file.name }))).json();
    location.href = made.open;
  } catch (error) {
    problem(error.message);
    bar.hidden = true;
  }
}

async function post(address, body, type = "application/x-www-form-urlencoded") {
  const answer = await fetch(address, { method: "POST", body, headers: { ...OWN, "content-type": type, "hx-request": "true" } });
  if (answer.ok) return answer;
  const page = new DOMParser().parseFromString(await answer.text(), "text/html");
  throw new Error(page.body.textContent.trim() || `the server rejected the request (${answer.status})`);
}

const drop = find("drop");
if (drop) {
  const file = find("file");
  file.addEventListener("change", () => file.files[0] && upload(file.files[0]));
  for (const name of ["dragover", "dragenter"]) drop.addEventListener(name, (event) => { event.preventDefault(); drop.classList.add("over"); });
  for (const name of ["dragleave", "drop"]) drop.addEventListener(name, () => drop.classList.remove("over"));
  drop.addEventListener("drop", (event) => { event.preventDefault(); if (event.dataTransfer.files[0]) upload(event.dataTransfer.files[0]); });
}

// Playground: each model answers the same chat in a separate column.
function play(place) {
  const models = JSON.parse(place.dataset.models);
  const side = place.querySelector(".answers-side");
  const columns = models.map((model) => {
    const column = make("section");
    column.append(make("h2", model), make("div"));
    column.lastChild.className = "turns";
    side.append(column);
    return { model, list: column.lastChild, turns: [] };
  });
  find("ask-form").addEventListener("submit", (event) => {
    event.preventDefault();
    const text = find("question").value.trim();
    if (!text) return;
    find("question").value = "";
    for (const column of columns) answer(column, text);
  });
}

async function answer(column, text) {
  column.turns.push({ role: "user", content: text });
  const asked = make("p", text);
  asked.className = "turn user";
  const shown = make("p", "…");
  shown.className = "turn assistant";
  column.list.append(asked, shown);
  const labels = await post("/playground/api/classify", JSON.stringify({ model: column.model, input: text }), "application/json").then((reply) => reply.json()).catch(() => ({}));
  if (labels.data) { probabilities(shown, labels.data[0]); return; }
  const body = { model: column.model, messages: column.turns, stream: true, temperature: Number(find("temperature").value), max_tokens: Number(find("most").value) };
  let said = "";
  try {
    const reply = await post("/playground/api/v1/chat/completions", JSON.stringify(body), "application/json");
    for await (const event of events(reply.body)) {
      if (event.error) throw new Error(event.error.message);
      const delta = event.choices?.[0]?.delta ?? {};
      said += delta.content ?? "";
      if (delta.reasoning_content) { shown.dataset.thoughts = (shown.dataset.thoughts ?? "") + delta.reasoning_content; }
      shown.textContent = said || "thinking …";
    }
  } catch (error) {
    shown.textContent = error.message;
    shown.classList.add("bad");
    return;
  }
  thoughts(shown);
  column.turns.push({ role: "assistant", content: said });
  thumbs(column, shown, said);
}

async function* events(stream) {
  const reader = stream.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (;;) {
    const { value, done } = await reader.read();
    if (done) break;
    rest += value;
    const lines = rest.split("\n");
    rest = lines.pop();
    for (const line of lines) if (line.startsWith("data: ") && line !== "data: [DONE]") yield JSON.parse(line.slice(6));
  }
  if (rest.startsWith("{")) yield JSON.parse(rest); // an error is one JSON document
}

function thoughts(shown) {
  if (!shown.dataset.thoughts) return;
  const fold = make("details");
  fold.append(make("summary", "Thoughts"), make("p", shown.dataset.thoughts));
  shown.before(fold);
}

function probabilities(shown, result) {
  shown.textContent = "";
  const table = make("table");
  const pairs = Object.entries(result.probabilities ?? {}).sort((a, b) => b[1] - a[1]).slice(0, 10);
  for (const [label, p] of pairs) {
    const row = make("tr");
    const meter = make("meter", "", { min: 0, max: 1, value: p, "aria-label": label });
    const cell = make("td");
    cell.append(meter);
    row.append(make("th", label, { scope: "row" }), cell, make("td", `${(100 * p).toFixed(1)} %`));
    table.append(row);
  }
  shown.append(table);
}

function thumbs(column, shown, said) {
  const messages = column.turns.slice(0, -1);
  const bar = make("p");
  bar.className = "thumbs";
  for (const [good, sign, name] of [[true, "good", "good answer"], [false, "bad", "bad answer"]]) {
    const button = make("button", sign, { type: "button", "aria-label": name, title: name });
    button.addEventListener("click", async () => {
      try {
        await post("/playground/api/feedback", JSON.stringify({ model: column.model, messages, answer: said, good, rater: "studio" }), "application/json");
        bar.replaceChildren(make("span", `saved as a ${name.split(" ")[0]} answer`));
      } catch (error) { problem(error.message); }
    });
    bar.append(button);
  }
  shown.after(bar);
}

const observer = new MutationObserver(() => {
  const place = document.querySelector(".play:not([data-ready])");
  if (place) { place.dataset.ready = ""; play(place); }
});
observer.observe(document.body, { childList: true, subtree: true });
const there = document.querySelector(".play");
if (there) { there.dataset.ready = ""; play(there); }
