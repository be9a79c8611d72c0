// The page of the studio: headers of its requests, and uploads.
// Text from models and rows only becomes text nodes.
import { find, make } from "./parts.js";

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

export function problem(text) {
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

export async function post(address, body, type = "application/x-www-form-urlencoded", signal = undefined) {
  const answer = await fetch(address, { method: "POST", body, signal, headers: { ...OWN, "content-type": type, "hx-request": "true" } });
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
