// The playground: each model answers the same chat in a separate column.
// Text from models, rows and servers only becomes text nodes.
import { count, find, make } from "./parts.js";
import { post, problem } from "./studio.js";

const CHAT = "v1/chat/completions";
const form = find("ask-form");
const columns = [];
let row = { text: "", reference: "" }; // the test row in the text field

function put(parent, name, text = "", kind = "") {
  const made = make(name, text);
  made.className = kind;
  parent.append(made);
  return made;
}

function fold(parent, title, text, open = false) {
  const made = put(parent, "details");
  made.open = open;
  put(made, "summary", title);
  return put(made, "p", text, "turn");
}

class Column {
  turns = [];
  running = null; // AbortController of the answer that is being written

  constructor(place) {
    Object.assign(this, JSON.parse(place.dataset.column)); // model, at, kind, instruction, thinks, rated
    this.list = place.querySelector(".turns");
  }

  async send(route, body) {
    const address = `/playground/api/${route}?${new URLSearchParams({ at: this.at })}`;
    return post(address, JSON.stringify({ model: this.model, ...body }), "application/json", this.running?.signal);
  }

  ask(text) {
    put(this.list, "p", text, "turn user");
    if (text === row.text.trim() && row.reference) put(this.list, "p", `Reference answer: ${row.reference}`, "muted");
    const lead = this.instruction && !this.turns.length ? `${this.instruction}\n\n` : "";
    return this.answer(text, { role: "user", content: lead + text });
  }

  // Add turns and show what the model answers to them; if it fails they are dropped, and the chat stays valid.
  // Return whether it answered.
  async answer(text, ...turns) {
    const place = put(this.list, "div");
    const shown = put(place, "p", "…", "turn assistant");
    const before = this.turns;
    this.turns = [...before, ...turns];
    this.runs(new AbortController());
    try {
      if (this.kind === "arm") await this.search(text, shown);
      else if (this.kind === CHAT || this.kind === "v1/completions") await this.write(text, shown, turns);
      else if (this.kind === "v1/rerank") await this.rank(text, shown);
      else await this.read(text, shown);
    } catch (error) {
      this.turns = before;
      if (error.name === "AbortError") put(place, "p", "stopped; not part of the chat", "muted");
      else Object.assign(shown, { textContent: error.message, className: "turn bad" });
    }
    this.runs(null);
    return this.turns !== before;
  }

  // The button that stops answers is shown until all are written.
  runs(controller) {
    this.running = controller;
    this.list.setAttribute("aria-busy", String(controller !== null));
    find("stop-answers").hidden = !columns.some((column) => column.running);
  }

  // Passages, one a line after the query, by their scores.
  async rank(text, shown) {
    const [query, ...documents] = text.split("\n").filter((line) => line.trim());
    if (!documents.length) throw new Error("The first line is the query, each further line a passage; add a passage.");
    const { results } = await document_of(this.send(this.kind, { query, documents }));
    shown.textContent = "";
    const table = put(shown, "table");
    for (const { index, relevance_score } of results) {
      const line = put(table, "tr");
      put(line, "td", relevance_score.toFixed(3));
      put(line, "td", documents[index]);
    }
  }

  // Labels with their probabilities, a number, or the beginning of a vector.
  async read(text, shown) {
    const reply = await document_of(this.send(this.kind, { input: text }));
    const { number, embedding, probabilities = {}, ...answer } = reply.data[0];
    shown.textContent = number === undefined ? "" : String(+number.toPrecision(6));
    if (embedding) shown.textContent = `${embedding.length} values: ${embedding.slice(0, 5).map((x) => x.toFixed(3)).join(", ")}, …`;
    if (this.kind === "answer") shown.textContent = JSON.stringify(answer, null, 1);
    const table = put(shown, "table");
    for (const [label, p] of Object.entries(probabilities).sort((a, b) => b[1] - a[1]).slice(0, 10)) {
      const line = put(table, "tr");
      line.append(make("th", label, { scope: "row" }));
      put(line, "td").append(make("meter", "", { min: 0, max: 1, value: p, "aria-label": label }));
      put(line, "td", `${(100 * p).toFixed(1)} %`);
    }
  }

  // The best arm of a comparison, and the passages behind its answer.
  async search(text, shown) {
    const reply = await document_of(post("/playground/arm", new URLSearchParams({ model: this.model, text }), undefined, this.running.signal));
    shown.textContent = reply.answer;
    put(shown.parentElement, "p", `arm ${reply.arm}`, "muted");
    for (const [id, passage] of Object.entries(reply.passages)) {
      fold(shown.parentElement, id === reply.cites ? `${id} is the closest to the answer` : `${id} was read`, passage, id === reply.cites);
    }
  }

  async write(text, shown, turns) {
    const place = shown.parentElement;
    const { system, thinking, tools, ...sampling } = settings();
    const body = { ...sampling, stream: true, stream_options: { include_usage: true } };
    if (this.kind === CHAT) {
      body.messages = [...(system ? [{ role: "system", content: system }] : []), ...this.turns];
      if (tools) body.tools = tools;
      if (thinking && this.thinks) body.chat_template_kwargs = { enable_thinking: thinking === "on" };
    } else body.prompt = text;
    const said = { content: "", thoughts: "", calls: [], end: "", tokens: 0 };
    const began = performance.now();
    let thoughts = null;
    for await (const event of events((await this.send(this.kind, body)).body)) {
      take(said, event);
      if (said.thoughts && !thoughts) shown.before((thoughts = fold(place, "Thoughts", "")).parentElement);
      if (thoughts) thoughts.textContent = said.thoughts;
      shown.textContent = said.content || (thoughts ? "thinking …" : "…");
    }
    const { content, calls, end, tokens } = said;
    if (!content) shown.textContent = calls.length ? "" : "(an empty answer)";
    const seconds = ((performance.now() - began) / 1000).toFixed(1);
    put(place, "p", `${tokens ? `${count(tokens)} tokens, ` : ""}${seconds} s${end === "length" ? "; cut off at the limit of tokens" : ""}`, "muted");
    if (this.kind !== CHAT) return;
    if (content && this.rated && !calls.length) this.thumbs(place, this.turns, content);
    if (calls.length) {
      this.turns = this.turns.slice(0, -turns.length);
      this.results(place, calls, [...turns, { role: "assistant", content, tool_calls: calls }]);
    } else this.turns = [...this.turns, { role: "assistant", content }];
  }

  // Calls of tools, with fields for what the tools return. The turns so far become part of the chat together with the results.
  results(place, calls, before) {
    const made = put(place, "form", "", "calls");
    const fields = calls.map((call) => {
      put(made, "p", `${call.function.name}(${call.function.arguments})`, "call");
      return put(put(made, "label", `What ${call.function.name} returns`), "textarea");
    });
    const button = put(made, "button", "Send to the model", "small");
    made.addEventListener("submit", async (event) => {
      event.preventDefault();
      if (this.running) return;
      button.hidden = true;
      const turns = calls.map((call, i) => ({ role: "tool", tool_call_id: call.id, content: fields[i].value }));
      button.hidden = await this.answer("", ...before, ...turns);
    });
  }

  thumbs(place, messages, answer) {
    const bar = put(place, "p", "", "thumbs");
    for (const sign of ["good", "bad"]) {
      const button = make("button", sign, { type: "button", "aria-label": `${sign} answer`, title: `${sign} answer` });
      button.addEventListener("click", async () => {
        try {
          await document_of(this.send("feedback", { messages, answer, good: sign === "good", rater: "studio" }));
          bar.replaceChildren(make("span", `saved as a ${sign} answer`));
        } catch (error) { problem(error.message); }
      });
      bar.append(button);
    }
  }
}

async function document_of(sent) {
  const reply = await (await sent).json();
  if (reply.error) throw new Error(reply.error.message);
  return reply;
}

// Add an event of a stream to what the model has said.
function take(said, event) {
  if (event.error) throw new Error(event.error.message ?? event.error);
  said.tokens = event.usage?.completion_tokens ?? said.tokens;
  const { delta = {}, text = "", finish_reason: end } = event.choices?.[0] ?? {};
  said.content += delta.content ?? text;
  said.thoughts += delta.reasoning_content ?? delta.reasoning ?? "";
  said.end = end ?? said.end;
  for (const part of delta.tool_calls ?? []) {
    const call = (said.calls[part.index ?? 0] ??= { id: "", type: "function", function: { name: "", arguments: "" } });
    call.id ||= part.id ?? "";
    call.function.name += part.function?.name ?? "";
    call.function.arguments += part.function?.arguments ?? "";
  }
}

async function* events(stream) {
  const reader = stream.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (;;) {
    const { value, done } = await reader.read();
    if (done) break;
    const lines = (rest + value).split("\n");
    rest = lines.pop();
    for (const line of lines) if (line.startsWith("data:") && !line.includes("[DONE]")) yield JSON.parse(line.slice(5));
  }
  if (rest.trim()) yield rest.startsWith("{") ? JSON.parse(rest) : { error: rest.slice(0, 300) }; // not a stream
}

// Return the values of the form, without empty ones.
function settings() {
  const found = {};
  for (const field of form.querySelectorAll("[data-key]")) {
    const text = field.value.trim();
    const read = field.type === "number" || field.dataset.kind === "json" ? JSON.parse : String;
    if (text) found[field.dataset.key] = read(text);
  }
  const { schema, ...others } = found;
  return schema ? { ...others, response_format: { type: "json_schema", json_schema: { name: "answer", schema } } } : others;
}

if (form) {
  const place = document.querySelector(".play");
  columns.push(...[...place.querySelectorAll("[data-column]")].map((section) => new Column(section)));
  const rows = JSON.parse(place.dataset.examples);
  form.addEventListener("submit", (event) => {
    event.preventDefault();
    const text = find("question").value.trim();
    if (!text || columns.some((column) => column.running)) return;
    find("question").value = "";
    columns.forEach((column) => column.ask(text));
  });
  find("question").addEventListener("keydown", (event) => {
    if (event.key === "Enter" && !event.shiftKey && !event.isComposing) { event.preventDefault(); form.requestSubmit(); }
  });
  find("stop-answers").addEventListener("click", () => columns.forEach((column) => column.running?.abort()));
  find("new-chat").addEventListener("click", () => columns.forEach((column) => { column.turns = []; column.list.replaceChildren(); }));
  find("test-row")?.addEventListener("click", () => {
    rows.push(row = rows.shift());
    find("question").value = row.text;
    find("question").focus();
  });
}
