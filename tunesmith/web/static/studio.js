// The page of the studio: headers of its requests.
// Text from models and rows only becomes text nodes.
import { find, make } from "./parts.js";

const OWN = { "x-tunesmith": "1" };

document.addEventListener("htmx:config:request", (event) => {
  Object.assign(event.detail.ctx.request.headers, OWN);
  // Polls leave a message where it is.
  if (!/every|load/.test(event.detail.ctx.sourceElement?.getAttribute("hx-trigger"))) find("problem").replaceChildren();
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

// Copy buttons. Browsers have no clipboard on a page from another machine over plain http, only the command "copy".
const announced = make("p", "", { class: "quiet", role: "status" });
document.body.append(announced);
document.addEventListener("click", async (event) => {
  const button = event.target.closest("[data-copy]");
  if (!button || button.textContent === "copied") return;
  if (navigator.clipboard) await navigator.clipboard.writeText(button.dataset.copy);
  else {
    const field = make("textarea", button.dataset.copy, { class: "quiet" });
    document.body.append(field);
    field.select();
    document.execCommand("copy");
    field.remove();
    button.focus();
  }
  const label = button.textContent;
  announced.textContent = button.textContent = "copied";
  setTimeout(() => { button.textContent = label; announced.textContent = ""; }, 1500);
});

export async function post(address, body, type = "application/x-www-form-urlencoded", signal = undefined) {
  const answer = await fetch(address, { method: "POST", body, signal, headers: { ...OWN, "content-type": type, "hx-request": "true" } });
  if (answer.ok) return answer;
  const page = new DOMParser().parseFromString(await answer.text(), "text/html");
  throw new Error(page.body.textContent.trim() || `the server rejected the request (${answer.status})`);
}

