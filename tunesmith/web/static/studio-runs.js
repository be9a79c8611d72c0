// The page of a run while it trains, the table of runs, and curves of several runs over each other.
import { find, make, count } from "./parts.js";
import { colour, dark } from "./studio-curve.js";

const LINES = [["--tuned"], ["--base", [6, 4]], ["--good", [2, 3]], ["--unsure", [10, 3, 2, 3]], ["--bad", [1, 5]], ["--ink", [14, 5]]];

// A chart of values by step; points are appended, so that an update costs as much as what is new.
export class Chart {
  constructor(place, labels, name) {
    Object.assign(this, { place, labels });
    this.clear();
    place.setAttribute("role", "img");
    place.setAttribute("aria-label", `${name} by step`);
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
      if (known.at(-1) !== step) this.data.forEach((values, n) => values.push(n ? null : step));
      series.forEach((values, n) => { values[known.length - 1] ??= columns[n]?.[i] ?? null; });
    });
    this.update();
  }

  update() {
    const [steps] = this.data;
    const { min, max } = this.plot?.scales.x ?? {};
    const zoomed = min != null && (min > steps[0] || max < this.end); // null: not painted yet
    this.end = steps.at(-1);
    if (this.plot) {
      this.plot.setData(this.data, !zoomed);
      if (zoomed) this.plot.redraw();
    } else if (steps.length) {
      const axis = { stroke: colour("--muted"), grid: { stroke: colour("--line"), width: 1 }, ticks: { stroke: colour("--line") } };
      const value = (_, number) => number == null ? "–" : number.toPrecision(4);
      const series = this.labels.map((label, i) => ({ label, stroke: colour(LINES[i][0]), width: 2, spanGaps: true, dash: LINES[i][1], value }));
      const axes = [{ ...axis, label: "step", labelSize: 18 }, { ...axis, size: 60 }];
      this.plot = new uPlot({ ...this.size(), scales: { x: { time: false } }, axes, legend: { live: false }, series: [{ label: "step" }, ...series] }, this.data, this.place);
    }
  }
}

const CHARTS = {
  loss: [["train", "validation"], ["training", "validation"], "training and validation loss"],
  rate: [["rate"], ["tokens per second"], "tokens per second"],
  reward: [["reward", "validation_reward"], ["training", "validation"], "training and validation reward"],
};

function follow(live) {
  const charts = [...live.querySelectorAll("[data-chart]")].map((place) => {
    const [keys, labels, name] = CHARTS[place.dataset.chart];
    return { keys, chart: new Chart(place, labels, name), figure: place.closest("figure") };
  });
  const facts = new Map();
  const write = (id, text) => { if (find(id) && text) find(id).textContent = text; };
  let source = null;
  let last = ""; // of the events that were received
  let stage = find("stage")?.textContent;

  // A hidden page gives its connection back: browsers open six of them to a server, for all pages together.
  const connect = () => {
    source?.close();
    if (document.hidden) return;
    source = new EventSource(`${live.dataset.events}?last=${last}`);
    source.addEventListener("message", show);
    source.addEventListener("open", () => write("stage", stage || " "));
    source.addEventListener("error", () => write("stage", "connection lost; the run continues, and this page tries again"));
    source.addEventListener("end", () => {
      source.close();
      document.removeEventListener("visibilitychange", connect);
      if ("active" in live.dataset) location.reload();
    });
  };
  const show = (message) => {
    performance.mark("update-start");
    const event = JSON.parse(message.data);
    last = message.lastEventId;
    if (event.restarted) {
      charts.forEach(({ chart }) => chart.clear());
      find("alarms").replaceChildren();
    }
    for (const { keys, chart, figure } of charts) {
      if (keys.some((key) => event.points[key])) figure.hidden = false;
      chart.add(event.points.step, keys.map((key) => event.points[key]));
    }
    find("alarms").append(...event.alarms.map(({ step, text }) => make("li", `Step ${count(step)}: ${text}`)));
    write("state", event.state);
    if (event.state === "running") write("stop", "Stop and save");
    if (event.stage) stage = `${event.stage[0]} of ${event.stage[1]}: ${event.stage[2]}`;
    if (event.state === "running") write("stage", stage || " ");
    find("log")?.append(event.log);
    progress(event, facts);
    memory(Math.max(event.memory, event.last?.peak_bytes ?? 0), event.predicted);
    // The charts are repainted in a microtask that was queued before this one.
    queueMicrotask(() => performance.measure("update", "update-start"));
  };
  document.addEventListener("visibilitychange", connect);
  connect();
}

function progress(event, facts) {
  const last = event.last;
  if (last) {
    if (find("bar")) find("bar").value = last.step / last.steps;
    facts.set("step", `${count(last.step)} of ${count(last.steps)}`);
    facts.set("loss", last.loss.toPrecision(4));
    if (last.tokens_per_second) facts.set("tokens per second", count(Math.round(last.tokens_per_second)));
    if (!facts.has("whole run left")) facts.set("training left", last.left < 90 ? `${Math.round(last.left)} s` : `${Math.round(last.left / 60)} min`);
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
  const { low, expected, high } = predicted;
  const size = (value) => value < 1e9 ? `${Math.round(value / 1e6)} MB` : `${(value / 1e9).toFixed(1)} GB`;
  const [meter, text] = find("memory").querySelectorAll("meter, span");
  Object.assign(meter, { max: Math.max(high, most), high, value: most });
  text.textContent = `${size(most)} at most, ${size(expected)} predicted (${size(low)} to ${size(high)})${most > high ? "; more than predicted" : ""}`;
  find("memory").classList.toggle("over", most > high);
  find("memory").hidden = false;
}

if (find("live")) follow(find("live"));

for (const place of document.querySelectorAll("[data-curves]")) {
  const curves = JSON.parse(place.dataset.curves);
  const names = Object.keys(curves);
  for (const [key, title] of [["validation", "Validation loss"], ["train", "Training loss"], ["reward", "Reward"]]) {
    if (!names.some((name) => curves[name][key])) continue;
    const figure = make("figure");
    const chart = make("div", "", { class: "chart" });
    figure.append(make("figcaption", title), chart);
    place.append(figure);
    const values = names.map((name) => new Map(curves[name].step.map((step, i) => [step, curves[name][key]?.[i]])));
    const steps = [...new Set(values.flatMap((map) => [...map.keys()]))].sort((a, b) => a - b);
    new Chart(chart, names, `${title} of ${names.join(", ")}`).add(steps, values.map((map) => steps.map((step) => map.get(step))));
  }
}

// The table of runs: sorted by a click on a heading, filtered by its words, two or more chosen.
const pick = find("pick");
const MOST = 6;
if (pick) {
  const table = pick.querySelector("table");
  const rows = [...table.tBodies[0].rows].map((row) => ({ row, text: row.textContent.toLowerCase(), box: row.querySelector("input") }));
  const choose = () => {
    const chosen = rows.filter(({ box }) => box.checked).length;
    find("compare").disabled = chosen < 2 || chosen > MOST;
    find("compare").textContent = chosen > MOST ? `Compare at most ${MOST} runs` : chosen < 2 ? "Compare" : `Compare ${chosen} runs`;
  };
  const filter = () => {
    const words = find("filter").value.toLowerCase().split(/\s+/);
    for (const { row, text, box } of rows) row.hidden = !box.checked && !words.every((word) => text.includes(word));
    const shown = rows.filter(({ row }) => !row.hidden).length;
    find("shown").textContent = `${count(shown)}${shown < rows.length ? ` of ${count(rows.length)}` : ""} runs`;
  };
  pick.addEventListener("change", choose);
  find("filter").addEventListener("input", filter);
  choose(); // the browser restores fields when one comes back
  filter();
  sortable(table);
}

function sortable(table) {
  const body = table.tBodies[0];
  const { compare } = new Intl.Collator("en", { numeric: true });
  for (const [column, head] of [...table.tHead.rows[0].cells].entries()) {
    if (head.querySelector(".quiet")) continue;
    const button = make("button", head.textContent, { type: "button", class: "link" });
    head.replaceChildren(button);
    button.addEventListener("click", () => {
      const up = head.getAttribute("aria-sort") !== "ascending";
      table.querySelectorAll("[aria-sort]").forEach((other) => other.removeAttribute("aria-sort"));
      head.setAttribute("aria-sort", up ? "ascending" : "descending");
      const keys = new Map([...body.rows].map((row) => [row, row.cells[column].textContent.trim()]));
      const number = (text) => Number(text.replace(/,/g, "").replace("−", "-"));
      // Runs without a value are last in both directions.
      body.append(...[...body.rows].sort((a, b) => {
        const [x, y] = [keys.get(a), keys.get(b)];
        return (x === "") - (y === "") || (number(x) - number(y) || compare(x, y)) * (up ? 1 : -1);
      }));
    });
  }
}
