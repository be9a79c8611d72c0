// Learning curves: the score of each run by training rows, and the fitted curve with its interval.
// The server replaces the data of the element while runs finish.
export const dark = matchMedia("(prefers-color-scheme: dark)");
export const colour = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();
const size = (place) => ({ width: Math.max(200, place.clientWidth), height: 260 });
const plots = new Map();
const resized = new ResizeObserver((entries) => entries.forEach(({ target }) => plots.get(target)?.setSize(size(target))));

function columns({ sizes, curve, scale }) {
  const [measured, fitted] = [JSON.parse(sizes), JSON.parse(curve)].map((parts) => new Map(parts.map((part) => [part.rows, part])));
  const rows = [...new Set([...measured.keys(), ...fitted.keys()])].sort((a, b) => a - b);
  const column = (value) => rows.map((x) => { const y = value(x); return y == null ? null : scale * y; });
  const most = Math.max(0, ...[...measured.values()].map((part) => part.scores.length));
  const line = ["low", "high", "score"].map((key) => column((x) => fitted.get(x)?.[key]));
  return [rows, ...line, ...Array.from({ length: most }, (_, i) => column((x) => measured.get(x)?.scores[i]))];
}

function show(place) {
  plots.get(place)?.destroy();
  const data = columns(place.dataset);
  const axis = { stroke: colour("--muted"), grid: { stroke: colour("--line"), width: 1 }, ticks: { stroke: colour("--line") }, labelSize: 20 };
  const curve = { points: { show: false }, spanGaps: true, width: 2 };
  const run = { paths: () => null, points: { show: true, size: 8, stroke: colour("--base"), fill: colour("--card"), width: 2 } };
  plots.set(place, new uPlot({
    ...size(place), legend: { show: false }, cursor: { show: false }, scales: { x: { time: false, distr: 3, log: 2 } },
    axes: [{ ...axis, label: "training rows" }, { ...axis, size: 64, label: place.dataset.unit }],
    series: [{}, curve, curve, { ...curve, stroke: colour("--tuned") }, ...data.slice(4).map(() => run)],
    bands: [{ series: [2, 1], fill: `${colour("--tuned")}2e` }],
  }, data, place));
  plots.get(place).sizes = place.dataset.sizes;
  resized.observe(place);
}

function look() {
  for (const place of plots.keys()) if (!place.isConnected) plots.delete(place);
  for (const place of document.querySelectorAll(".chart.learning")) if (plots.get(place)?.sizes !== place.dataset.sizes && place.dataset.sizes !== "[]") show(place);
}

new MutationObserver(look).observe(document.body, { childList: true, subtree: true, attributeFilter: ["data-sizes"] });
dark.addEventListener("change", () => [...plots.keys()].forEach(show));
look();
