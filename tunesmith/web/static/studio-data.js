// The screen Data: uploads of files and folders, and the list of the rows of a file, which holds the visible ones only.
import { find, make, count, rows as counted, tab } from "./parts.js";
import { post, problem } from "./studio.js";

const CHUNK = 4 * 2 ** 20; // bytes of a file in one request
const ending = (name) => /\.[^./]*$/.exec(name)?.[0].toLowerCase() ?? "";

// Upload [path, File] pairs, in pieces that the server appends to files.
async function upload(files) {
  const [rows, documents] = [drop.dataset.rows, drop.dataset.documents].map((list) => list.split(" "));
  const known = files.filter(([path]) => [...rows, ...documents].includes(ending(path)) && !/(^|\/)\./.test(path));
  if (!known.length) return problem(`None of these files can be read. Drop ${[...new Set([...rows, ...documents])].join(", ")}.`);
  const loose = known.length > 1 && known.every(([path]) => !path.includes("/") && !rows.includes(ending(path)));
  const [name, bar, total] = [`${tab}-${Date.now()}`, find("upload"), known.reduce((sum, [, file]) => sum + file.size, 1)];
  let sent = 0;
  bar.hidden = false;
  try {
    for (const [path, file] of known) {
      for (let start = 0; start === 0 || start < file.size; start += CHUNK) {
        const query = new URLSearchParams({ upload: name, name: loose ? `documents/${path}` : path, start });
        await post(`/data/upload?${query}`, file.slice(start, start + CHUNK), "application/octet-stream");
        bar.value = (sent += Math.min(CHUNK, file.size - start)) / total;
      }
    }
    location.href = (await (await post("/data/uploaded", new URLSearchParams({ upload: name }))).json()).open;
  } catch (error) {
    problem(error.message);
    bar.hidden = true;
  }
}

// Return the files below an entry of a drop as [path, File].
async function filesOf(entry, folder = "") {
  if (entry.isFile) return [[folder + entry.name, await new Promise((done, fail) => entry.file(done, fail))]];
  const [reader, entries] = [entry.createReader(), []];
  for (let part = [null]; part.length; entries.push(...part)) part = await new Promise((done, fail) => reader.readEntries(done, fail));
  return (await Promise.all(entries.map((inner) => filesOf(inner, `${folder}${entry.name}/`)))).flat();
}

const drop = find("drop");
if (drop) {
  for (const id of ["file", "folder"]) find(id).addEventListener("change", (event) => upload([...event.target.files].map((file) => [file.webkitRelativePath || file.name, file])));
  for (const name of ["dragover", "dragenter"]) drop.addEventListener(name, (event) => { event.preventDefault(); drop.classList.add("over"); });
  for (const name of ["dragleave", "drop"]) drop.addEventListener(name, () => drop.classList.remove("over"));
  drop.addEventListener("drop", async (event) => {
    event.preventDefault();
    const entries = [...event.dataTransfer.items].map((item) => item.webkitGetAsEntry()).filter(Boolean); // gone after an await
    await upload((await Promise.all(entries.map((entry) => filesOf(entry)))).flat());
  });
}

const PAGE = 100; // rows of one request
const PAGES = 30; // kept
const TALLEST = 8e6; // pixels of an element that every browser can scroll

// A table that stays in view while a box as tall as the whole file scrolls behind it.
class RowList {
  constructor(place) {
    [this.place, this.view, this.table, this.status] = [place, ...[".rows", "table", "[role=status]"].map((part) => place.querySelector(part))];
    [this.box, this.body, this.columns] = [this.view.firstElementChild, this.table.tBodies[0], JSON.parse(place.dataset.columns)];
    Object.assign(this, { pages: new Map(), total: 0, whole: false, first: 0, current: 0, scrolled: 0, goal: null });
    this.view.addEventListener("scroll", () => this.scroll());
    this.table.addEventListener("keydown", (event) => this.key(event));
    this.body.addEventListener("click", (event) => { this.current = Number(event.target.closest("tr").dataset.n); this.show(this.first); this.open(); });
    place.querySelector("input")?.addEventListener("change", (event) => { this.goal = Math.max(0, Math.trunc(event.target.value) - 1); this.go(); });
    new ResizeObserver(() => this.render()).observe(this.view);
    this.fetch(0);
  }

  get height() { return this.table.tHead.offsetHeight; }
  get fits() { return Math.max(1, Math.floor(this.view.clientHeight / this.height) - 1); }
  get last() { return Math.max(0, this.total - this.fits); } // first row of the last view
  get unit() { return (this.box.offsetHeight - this.view.clientHeight) / Math.max(1, this.last); } // pixels per row
  row(n) { return this.pages.get(Math.floor(n / PAGE))?.[n % PAGE]; }

  async fetch(page) {
    if (this.loading) return;
    this.loading = true;
    const { path, finding } = this.place.dataset;
    try {
      const answer = await fetch(`/data/rows?${new URLSearchParams({ path, finding, start: page * PAGE, count: PAGE })}`);
      if (!answer.ok) throw new Error(new DOMParser().parseFromString(await answer.text(), "text/html").querySelector(".problem")?.textContent ?? "The server cannot read these rows.");
      const { rows, total, whole, problem: why } = await answer.json();
      Object.assign(this, { total, whole });
      if (rows.length && rows.length === Math.min(PAGE, total - page * PAGE)) this.pages.set(page, rows);
      if (this.pages.size > PAGES) this.pages.delete(this.pages.keys().next().value);
      this.status.textContent = why || (whole ? counted(total) : `${counted(total)} so far …`);
      this.box.style.height = `${Math.min(TALLEST, (total + 1) * this.height + 2)}px`;
      this.table.setAttribute("aria-rowcount", whole ? total + 1 : -1);
    } catch (error) {
      this.status.textContent = error.message;
      return;
    } finally { this.loading = false; }
    this.go();
    this.render();
    if (page === 0) requestAnimationFrame(() => setTimeout(() => performance.mark("rows-shown")));
    if (!this.whole) setTimeout(() => this.fetch(Math.ceil(this.total / PAGE) + 1e6), 50); // the server reads on in the file
    else if (!this.counted) this.counted = performance.mark("rows-counted");
  }

  // Go to the wanted row as soon as the file is read that far.
  go() {
    if (this.goal === null || (this.goal >= this.total && !this.whole)) return;
    this.current = Math.min(this.goal, this.total - 1);
    this.goal = null;
    this.show(this.current);
    this.open();
  }

  show(first) {
    this.first = Math.max(0, Math.min(first, this.last));
    this.view.scrollTop = this.first * this.unit;
    this.scrolled = this.view.scrollTop;
    this.render();
  }

  scroll() {
    if (this.view.scrollTop === this.scrolled) return; // by `show`, which knows the row better
    this.scrolled = this.view.scrollTop;
    this.first = Math.min(this.last, Math.round(this.scrolled / this.unit));
    this.render();
  }

  render() {
    const shown = Array.from({ length: Math.max(0, Math.min(this.fits, this.total - this.first)) }, (_, i) => this.line(this.first + i));
    this.body.replaceChildren(...shown);
    this.table.setAttribute("aria-activedescendant", `row-${this.current}`);
  }

  line(n) {
    const row = this.row(n);
    if (!row) this.fetch(Math.floor(n / PAGE));
    const line = make("tr", "", { id: `row-${n}`, "data-n": n, "aria-rowindex": n + 2, "aria-selected": n === this.current });
    const broken = typeof row?.fields === "string" && make("td", row.fields, { colspan: Math.max(1, this.columns.length), class: "bad" });
    line.append(make("td", row ? count(row.n + 1) : "…", { class: "n" }), ...(broken ? [broken] : this.columns.map((name) => make("td", row?.fields[name] ?? ""))));
    return line;
  }

  open() {
    const number = this.row(this.current)?.n ?? (this.place.dataset.finding ? null : this.current);
    if (number !== null) htmx.ajax("GET", `/data/row?${new URLSearchParams({ path: this.place.dataset.path, number })}`, { target: "#row" });
  }

  key(event) {
    const steps = { ArrowDown: 1, ArrowUp: -1, PageDown: this.fits, PageUp: -this.fits, Home: -this.total, End: this.total };
    if (!(event.key in steps) && event.key !== "Enter") return;
    event.preventDefault();
    if (event.key === "Enter") { this.open(); return; }
    this.current = Math.max(0, Math.min(this.total - 1, this.current + steps[event.key]));
    this.show(Math.max(this.current - this.fits + 1, Math.min(this.first, this.current)));
  }
}

for (const place of document.querySelectorAll(".row-list")) new RowList(place);
