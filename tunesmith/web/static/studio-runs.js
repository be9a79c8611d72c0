// The page of a run while it trains, the table of runs, and curves of several runs over each other.
import { find, make, count } from "./parts.js";

const dark = matchMedia("(prefers-color-scheme: dark)");
const colour = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();
const COLOURS = ["--tuned", "--base", "--good", "--unsure", "--bad", "--ink"];
const DASHES = [undefined, [6, 4], [2, 3], [10, 3, 2, 3], [1, 5], [14, 5]];

// A chart of values by step; points are appended, so that an update costs as much as what is new.
export class Chart {
  constructor(place, labels, name) {
    this.place = place;
    this.labels = labels;
    this.clear();
    place.setAttribute("role", "img");
    place.setAttribute("aria-label", name);
    new ResizeObserver(() => this.plot?.setSize(this.size())).observe(place);
    dark.addEventListener("change", () => { this.plot?.destroy(); this.plot = null; this.update(); });
  }

  size() { return { width: Math.max(200, this.place.clientWidth), height: 220 }; }

  clear() { this.data = [[], ...this.labels.map(() => [])]; }

  // Steps never fall; values of the last step are added to it.
  add(steps, columns) {
    const [known, ...series] = this.data;
    steps.forEach((step, i) => {
      if (columns.every((column) => column?.[i] == null)) return;
      if (known.at(-1) !== step) [known, ...series].forEach((values, n) => values.push(n ? null : step));
      series.forEach((values, n) => { values[known.length - 1] ??= columns[n]?.[i] ?? null; });
    });
    this.update();
  }

  update() {
    if (!this.data[0].length) return;
    if (this.plot) {
      const { min, max } = this.plot.scales.x;
      const zoomed = min != null && (min > this.data[0][0] || max < this.end); // null: not painted yet
      this.end = this.data[0].at(-1);
      this.plot.setData(this.data, !zoomed);
      if (zoomed) this.plot.redraw();
      return;
    }
    this.end = this.data[0].at(-1);
    const axis = { stroke: colour("--muted"), grid: { stroke: colour("--line"), width: 1 }, ticks: { stroke: colour("--line") } };
    this.plot = new uPlot({
      ...this.size(),
      scales: { x: { time: false } },
      axes: [{ ...axis, label: "step", labelSize: 18 }, { ...axis, size: 60 }],
      series: [{ label: "step" }, ...this.labels.map((label, i) => ({
        label, stroke: colour(COLOURS[i]), width: 2, spanGaps: true, dash: DASHES[i],
        value: (_, value) => value == null ? "–" : value.toPrecision(4),
      }))],
    }, this.data, this.place);
  }
}

const LIVE = {
  loss: [["train", "validation"], ["training", "validation"], "training and validation loss by step"],
  rate: [["rate"], ["tokens per second"], "tokens per second by step"],
  reward: [["reward", "validation_reward"], ["training", "validation"], "training and validation reward by step"],
};

function follow(live) {
  const charts = [...live.querySelectorAll("[data-chart]")].map((place) => {
    const [keys, labels, name] = LIVE[place.dataset.chart];
    return { keys, chart: new Chart(place, labels, name), figure: place.closest("figure") };
  });
  const facts = new Map();
  const source = new EventSource(live.dataset.events);
  const stage = (text) => { const place = find("stage"); if (place && text) place.textContent = text; };

  source.addEventListener("message", (message) => {
    performance.mark("update-start");
    const event = JSON.parse(message.data);
    if (event.restarted) {
      charts.forEach(({ chart }) => chart.clear());
      find("alarms").replaceChildren();
    }
    for (const { keys, chart, figure } of charts) {
      if (keys.some((key) => event.points[key])) figure.hidden = false;
      chart.add(event.points.step, keys.map((key) => event.points[key]));
    }
    for (const { step, text } of event.alarms) find("alarms").append(make("li", `Step ${count(step)}: ${text}`));
    if (event.state && find("state")) find("state").textContent = event.state;
    if (event.state === "running" && find("stop")) find("stop").textContent = "Stop and save";
    if (event.stage) stage(`${event.stage[0]} of ${event.stage[1]}: ${event.stage[2]}`);
    log(event.log);
    progress(event, facts);
    memory(Math.max(event.memory ?? 0, event.last?.peak_bytes ?? 0), event.predicted);
    // The charts are repainted in a microtask that was queued before this one.
    queueMicrotask(() => performance.measure("update", "update-start"));
  });
  source.addEventListener("error", () => stage("connection lost; the run continues, and this page tries again"));
  source.addEventListener("end", () => { source.close(); if ("active" in live.dataset) location.reload(); });
}

const LOG_CHARS = 200000;

function log(text) {
  const place = find("log");
  if (!place || !text) return;
  if (place.textContent.length > LOG_CHARS) place.replaceChildren();
  place.append(text);
  if (place.closest("details").open) place.scrollTop = place.scrollHeight;
}

function progress(event, facts) {
  const last = event.last;
  if (last) {
    const bar = find("bar");
    if (bar) bar.value = last.step / last.steps;
    facts.set("step", `${count(last.step)} of ${count(last.steps)}`);
    facts.set("loss", last.loss.toPrecision(4));
    if (last.tokens_per_second) facts.set("tokens per second", count(Math.round(last.tokens_per_second)));
    if (!facts.has("whole run left")) facts.set("training left", seconds(last.left));
  }
  const validated = event.points.validation?.findLast((value) => value != null);
  if (validated != null) facts.set("validation loss", validated.toPrecision(4));
  if (event.whole_left) {
    facts.delete("training left");
    facts.set("whole run left", `about ${event.whole_left[0]} (${event.whole_left[1]})`);
  }
  if (event.state !== "running") ["training left", "whole run left"].forEach((name) => facts.delete(name));
  find("live-facts").replaceChildren(...[...facts].map(([name, value]) => {
    const pair = make("div");
    pair.append(make("dt", name), make("dd", value));
    return pair;
  }));
}

let most = 0;
let predicted = null;

// The most memory so far against what was predicted, with the bounds within which it should stay.
function memory(bytes, prediction) {
  most = Math.max(most, bytes);
  predicted = prediction ?? predicted;
  if (!most || !predicted) return;
  const place = find("memory");
  const { low, expected, high } = predicted;
  Object.assign(place.querySelector("meter"), { max: Math.max(high, most), high, value: most });
  const over = most > high ? "; more than predicted" : "";
  place.querySelector("span").textContent = `${bytesOf(most)} at most so far, ${bytesOf(expected)} predicted (${bytesOf(low)} to ${bytesOf(high)})${over}`;
  place.classList.toggle("over", most > high);
  place.hidden = false;
}

const bytesOf = (bytes) => bytes < 1e9 ? `${Math.round(bytes / 1e6)} MB` : `${(bytes / 1e9).toFixed(1)} GB`;

function seconds(value) {
  return value < 90 ? `${Math.round(value)} s` : `${Math.round(value / 60)} min`;
}

const live = find("live");
if (live) follow(live);

// Curves of several runs over each other.
for (const place of document.querySelectorAll("[data-curves]")) {
  const curves = JSON.parse(place.dataset.curves);
  const names = Object.keys(curves);
  for (const [key, title] of [["validation", "Validation loss"], ["train", "Training loss"], ["reward", "Reward"]]) {
    const found = names.filter((name) => curves[name][key]);
    if (!found.length) continue;
    const figure = make("figure");
    figure.append(make("figcaption", title), make("div"));
    figure.lastChild.className = "chart";
    place.append(figure);
    const chart = new Chart(figure.lastChild, names, `${title} of ${found.join(", ")} by step`);
    const values = names.map((name) => new Map(curves[name].step.map((step, i) => [step, curves[name][key]?.[i]])));
    const steps = [...new Set(values.flatMap((map) => [...map.keys()]))].sort((a, b) => a - b);
    chart.add(steps, values.map((map) => steps.map((step) => map.get(step))));
  }
}

// The table of runs: sorted by a click on a heading, filtered by its words, two or more chosen.
const pick = find("pick");
if (pick) {
  const table = pick.querySelector("table");
  const rows = [...table.tBodies[0].rows].map((row) => ({ row, text: row.textContent.toLowerCase(), box: row.querySelector("input") }));
  const button = find("compare");
  const MOST = 6;
  const choose = () => {
    const chosen = rows.filter(({ box }) => box.checked).length;
    button.disabled = chosen < 2 || chosen > MOST;
    button.textContent = chosen > MOST ? `Compare at most ${MOST} runs` : chosen < 2 ? "Compare" : `Compare ${chosen} runs`;
  };
  const filter = () => {
    const words = find("filter").value.toLowerCase().split(/\s+/);
    let shown = 0;
    for (const { row, text, box } of rows) {
      row.hidden = !box.checked && !words.every((word) => text.includes(word));
      shown += !row.hidden;
    }
    find("shown").textContent = `${count(shown)}${shown < rows.length ? ` of ${count(rows.length)}` : ""} runs`;
  };
  pick.addEventListener("change", choose);
  pick.addEventListener("submit", (event) => { // the security policy of the page allows no plain form
    event.preventDefault();
    location.href = `/diff?${new URLSearchParams(new FormData(pick))}`;
  });
  find("filter").addEventListener("input", filter);
  sortable(table);
  choose();
  filter(); // the browser restores fields when one comes back
}

export function sortable(table) {
  const body = table.tBodies[0];
  [...table.tHead.rows[0].cells].forEach((head, column) => {
    if (head.querySelector(".quiet")) return;
    const button = make("button", head.textContent, { type: "button" });
    button.className = "link";
    head.replaceChildren(button);
    button.addEventListener("click", () => {
      const up = head.getAttribute("aria-sort") !== "ascending";
      table.querySelectorAll("[aria-sort]").forEach((other) => other.removeAttribute("aria-sort"));
      head.setAttribute("aria-sort", up ? "ascending" : "descending");
      const keys = new Map([...body.rows].map((row) => [row, keyOf(row.cells[column].textContent.trim())]));
      const compare = (a, b) => typeof a === "number" && typeof b === "number" ? a - b : String(a).localeCompare(String(b), "en", { numeric: true });
      // Runs without a value are last in both directions.
      body.append(...[...keys.keys()].sort((a, b) => {
        const [x, y] = [keys.get(a), keys.get(b)];
        return (x === "") - (y === "") || compare(x, y) * (up ? 1 : -1);
      }));
    });
  });
}

function keyOf(text) {
  const number = text.replace(/,/g, "").replace("−", "-");
  return number && !Number.isNaN(Number(number)) ? Number(number) : text;
}
