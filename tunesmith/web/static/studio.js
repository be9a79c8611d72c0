// The page of the studio: headers of its requests, uploads, live curves, the playground.
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

// Live curves.
const dark = matchMedia("(prefers-color-scheme: dark)");
const colour = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();

class Chart {
  constructor(place, curves, name) {
    this.place = place;
    this.curves = curves; // [name, label, colour]
    this.values = Object.fromEntries(curves.map(([key]) => [key, new Map()]));
    place.setAttribute("role", "img");
    place.setAttribute("aria-label", name);
    new ResizeObserver(() => this.plot?.setSize(this.size())).observe(place);
    dark.addEventListener("change", () => { this.plot?.destroy(); this.plot = null; this.update(); });
  }

  size() { return { width: Math.max(200, this.place.clientWidth), height: 220 }; }

  clear() { for (const map of Object.values(this.values)) map.clear(); }

  add(curves) {
    for (const [key] of this.curves) {
      const [steps, values] = curves[key] ?? [[], []];
      steps.forEach((step, i) => this.values[key].set(step, values[i]));
    }
    this.update();
  }

  update() {
    const steps = [...new Set(Object.values(this.values).flatMap((map) => [...map.keys()]))].sort((a, b) => a - b);
    const data = [steps, ...this.curves.map(([key]) => steps.map((step) => this.values[key].get(step) ?? null))];
    if (this.plot) { this.plot.setData(data); return; }
    if (!steps.length) return;
    const axis = { stroke: colour("--muted"), grid: { stroke: colour("--line"), width: 1 }, ticks: { stroke: colour("--line") } };
    this.plot = new uPlot({
      ...this.size(),
      scales: { x: { time: false } },
      axes: [{ ...axis, label: "step", labelSize: 18 }, { ...axis, size: 60 }],
      series: [{ label: "step" }, ...this.curves.map(([, label, name], i) => ({
        label, stroke: colour(name), width: 2, spanGaps: true, dash: i ? [6, 4] : undefined,
        value: (_, value) => value == null ? "–" : value.toPrecision(4),
      }))],
    }, data, this.place);
  }
}

const live = find("live");
if (live) {
  const charts = [...live.querySelectorAll("[data-chart]")].map((place) => place.dataset.chart === "loss"
    ? new Chart(place, [["train", "training", "--tuned"], ["validation", "validation", "--base"]], "training and validation loss by step")
    : new Chart(place, [["rate", "tokens per second", "--tuned"]], "tokens per second by step"));
  const source = new EventSource(live.dataset.events);
  const facts = new Map();
  let first = null;
  source.addEventListener("message", (message) => {
    performance.mark("update-start");
    const event = JSON.parse(message.data);
    if (event.restarted) { charts.forEach((chart) => chart.clear()); first = null; }
    charts.forEach((chart) => chart.add(event.curves));
    if (event.state) find("state").textContent = event.state;
    if (event.log !== null) { const log = find("log"); if (log) { log.textContent = event.log; log.scrollTop = log.scrollHeight; } }
    const last = event.last;
    if (last) {
      first ??= { step: last.step, at: Date.now() };
      find("bar").value = last.step / last.steps;
      const pace = (Date.now() - first.at) / 1000 / (last.step - first.step);
      facts.set("step", `${count(last.step)} of ${count(last.steps)}`);
      facts.set("loss", last.loss.toPrecision(4));
      facts.set("tokens per second", count(Math.round(last.tokens_per_second)));
      if (event.state === "running" && last.step > first.step && last.step < last.steps) facts.set("training left", seconds(pace * (last.steps - last.step)));
      else facts.delete("training left");
    }
    if (event.memory) facts.set("memory now", `${(event.memory / 1e9).toFixed(1)} GB`);
    find("live-facts").replaceChildren(...[...facts].map(([name, value]) => { const pair = make("div"); pair.append(make("dt", name), make("dd", value)); return pair; }));
    performance.measure("update", "update-start");
  });
  source.addEventListener("end", () => { source.close(); if ("active" in live.dataset) location.reload(); });
}

function seconds(value) {
  return value < 90 ? `${Math.round(value)} s` : `${Math.round(value / 60)} min`;
}

for (const place of document.querySelectorAll("[data-curves]")) {
  const curves = JSON.parse(place.dataset.curves);
  const names = Object.keys(curves);
  const chart = new Chart(place, names.map((name, i) => [name, name, i ? "--base" : "--tuned"]), `validation loss of ${names.join(" and ")}`);
  chart.add(Object.fromEntries(names.map((name) => [name, curves[name].validation])));
}

// Two runs to compare.
const pick = find("pick");
if (pick) {
  const chosen = () => [...pick.querySelectorAll("input:checked")];
  pick.addEventListener("change", () => { find("compare").disabled = chosen().length !== 2; });
  pick.addEventListener("submit", (event) => {
    event.preventDefault();
    const [a, b] = chosen().map((box) => box.value);
    location.href = `/diff?${new URLSearchParams({ a, b })}`;
  });
  sortable(pick.querySelector("table"));
}

function sortable(table) {
  const body = table.tBodies[0];
  [...table.tHead.rows[0].cells].forEach((head, column) => {
    if (!head.textContent.trim()) return;
    const button = make("button", head.textContent);
    button.type = "button";
    button.className = "link";
    head.replaceChildren(button);
    button.addEventListener("click", () => {
      const up = head.getAttribute("aria-sort") !== "ascending";
      table.querySelectorAll("[aria-sort]").forEach((other) => other.removeAttribute("aria-sort"));
      head.setAttribute("aria-sort", up ? "ascending" : "descending");
      const key = (row) => { const text = row.cells[column].textContent.trim(); const number = parseFloat(text.replace(/,/g, "").replace("−", "-")); return Number.isNaN(number) ? text : number; };
      const rows = [...body.rows].sort((a, b) => { const [x, y] = [key(a), key(b)]; return (x < y ? -1 : x > y ? 1 : 0) * (up ? 1 : -1); });
      body.append(...rows);
    });
  });
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
