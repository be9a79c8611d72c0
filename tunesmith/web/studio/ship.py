"""Screen "Ship": a server with code for its clients, exports with their check, and what an upload would contain."""

from __future__ import annotations

import json
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tunesmith.data.files import command_line
from tunesmith.inference.export.dtypes import DTYPES
from tunesmith.inference.identify import read_manifest
from tunesmith.models.loading.bundled_models import BUNDLED_MODELS
from tunesmith.models.loading.hub import is_hub_id
from tunesmith.report.code_snippets import TEXT, ask_line, python_lines, transformers_lines
from tunesmith.report.run_data import Published, RunData, read_run_data
from tunesmith.report.upload import upload_of
from tunesmith.web.studio.screen import Route, Screen
from tunesmith.web.studio.workspace import WorkspaceError

# Format and precision of exports, as `tunesmith export` takes them.
FORMATS = tuple(f"{kind} {dtype}" for kind, dtypes in DTYPES.items() for dtype in dtypes)
USUAL = "http://127.0.0.1:8378/v1"  # of `tunesmith serve`
OPENAI = """\
import openai

client = openai.OpenAI(base_url="{url}", api_key="none")
reply = client.chat.completions.create(**{body})
print(reply.choices[0].message.content)"""
HTTPX = """\
import httpx2

reply = httpx2.post("{address}", json={body}, timeout=120)
print(reply.json())"""
NODE = """\
// In Node, Deno or Bun; the server refuses pages of other sites.
const headers = {{ "content-type": "application/json" }};
const reply = await fetch("{address}", {{ method: "POST", headers, body: JSON.stringify({body}) }});
console.log(await reply.json());"""


class Ship(Screen):
    """The screen."""

    def routes(self) -> Sequence[Route]:
        """Return the routes."""
        return (
            ("GET", "/ship", self._screen),
            ("GET", "/ship/clients", self._clients),
            ("GET", "/ship/upload", self._upload),
            ("POST", "/ship/export", self._export),
            ("POST", "/ship/serve", self._serve),
            ("POST", "/ship/verify", self._verify),
        )

    def _screen(self, run: str = "") -> Any:
        values: dict[str, Any] = {"runs": self.studio.finished_runs(), "run": run, "formats": FORMATS}
        if run:
            folder, place = self.workspace.run(run), f"runs/{run}"
            data = read_run_data(folder)
            if data.report.family == "encoder":  # llama.cpp and vLLM generate text
                values["formats"] = [name for name in FORMATS if name.startswith(("merged", "adapter"))]
            values["verifiable"] = (folder / "challenge.json").is_file()
            values["code"] = {
                "On the command line": ask_line(data.report, folder, place=place),
                "In Python": "\n".join(python_lines(data)).replace('load(".")', f'load("{place}")'),
                f"In transformers, in the folder {place}": "\n".join(transformers_lines(data, base=data.report.model)),
            }
            exports = [(export, files_of(self.workspace.folder / export.folder)) for export in data.report.exports]
            values["exports"] = [(export, sum(files.values())) for export, files in exports]
            commands = {"exported": "export", "server": "serve", "verified": "verify"}
            values |= {name: self.jobs.about(place, command) for name, command in commands.items()}
            values["folders"] = [place, *(f"{place}/export/{path.name}" for path in sorted(folder.glob("export/*")))]
        return self.studio.render("ship", here="ship", **values)

    def _export(self, fields: dict[str, str]) -> Any:
        run = self.workspace.run(fields["run"])
        if fields["format"] not in FORMATS:
            raise WorkspaceError(f"format {fields['format'][:40]!r}: unknown; use the list of the page")
        kind, dtype = fields["format"].split()
        words = ["export", f"runs/{run.name}", "--format", kind, "--dtype", dtype]
        return self.follow(self.studio.start(*words, subject=f"runs/{run.name}"))

    def _verify(self, fields: dict[str, str]) -> Any:
        """Ask the run itself, a file or folder of the workspace, or a server the challenge of the run."""
        run, target = self.workspace.run(fields["run"]), fields.get("target", "").strip()
        if target and not target.startswith(("http://", "https://")):
            self.workspace.path(target)
        words = ["verify", f"runs/{run.name}", *(["--at", target] if target else [])]
        return self.follow(self.studio.start(*words, subject=f"runs/{run.name}"))

    def _serve(self, fields: dict[str, str]) -> Any:
        run = self.workspace.run(fields["run"])
        words = ["serve", f"runs/{run.name}", "--port", fields.get("port") or "0"]
        return self.follow(self.studio.start(*words, subject=f"runs/{run.name}", queued=False))

    def _clients(self, run: str, shown: str = "") -> Any:
        """Show the code of clients, with the address of the server of the run if there is one, unless it is `shown`."""
        from fastapi.responses import Response

        job = self.jobs.about(f"runs/{run}", "serve")
        served = job.output() if job is not None and job.is_active else None
        url = served.get("url", USUAL) if served else USUAL
        if url == shown:
            return Response(status_code=204)
        code = clients_of(read_run_data(self.workspace.run(run)), url)
        return self.studio.render("clients", served=served, url=url, code=code)

    def _upload(self, folder: str, repo: str = "") -> Any:
        """Show what an upload to the Hub would contain. Nothing is sent."""
        path, repo, push = self.workspace.path(folder), repo.strip() or "USER/NAME", ""
        if (path / "model").is_dir():
            words, base = ["tunesmith", "push", folder, repo], read_manifest(path / "model").base
            if base not in BUNDLED_MODELS and (not is_hub_id(base) or Path(base).exists()):
                words += ["--base", base := "OWNER/BASE"]  # a folder of this machine
            content = upload_of(path, Published(repo, base, licence="other"), report=False)
            files = {
                name: len(file) if isinstance(file, bytes) else file.stat().st_size for name, file in content.items()
            }
            line, card = command_line(words), bytes(content["README.md"]).decode()
        else:
            files, line = files_of(path), command_line(["hf", "upload", repo, folder, ".", "--private"])
            if path.parent.name == "export":
                push = command_line(["tunesmith", "push", folder.partition("/export/")[0], repo])
            card = (path / "README.md").read_text(encoding="utf-8") if "README.md" in files else ""
        left_out = sorted({child.name for child in path.iterdir()} - {name.split("/")[0] for name in files} - {"model"})
        return self.studio.render("upload", files=files, left_out=left_out, line=line, push=push, card=card)


def clients_of(run: RunData, url: str) -> dict[str, str]:
    """Return title -> code of a client; empty if the server does not answer for such a model.

    Args:
        run: the run, of whose tasks the first is used.
        url: address of the server, which ends in /v1.
    """
    task, objective = next(iter(run.recipe.objective.task_objectives.items()))
    turn = {"role": "user", "content": objective.user_message(TEXT).content}
    bodies: dict[str, Any] = {
        "v1/chat/completions": {"messages": [turn]},
        "v1/completions": {"prompt": TEXT},
        "v1/rerank": {"query": TEXT, "documents": ["a passage", "another passage"]},
    }
    route = objective.route
    if not route or (route in bodies and run.report.family == "encoder"):
        return {}
    model = f"{run.folder.name}/{task}" if task else run.folder.name
    content = {"model": model, **bodies.get(route, {"input": TEXT})}
    address, body = url.removesuffix("v1") + route, json.dumps(content, ensure_ascii=False)
    values = {"url": url, "address": address, "body": body}
    return {
        "curl": f"curl {address} -H 'content-type: application/json' -d {shlex.quote(body)}",
        "Python": (OPENAI if objective.produces == "text" else HTTPX).format(**values),
        "JavaScript": NODE.format(**values),
    }


def files_of(folder: Path) -> dict[str, int]:
    """Return the files of an export, with their sizes in bytes."""
    return {
        path.relative_to(folder).as_posix(): path.stat().st_size for path in sorted(folder.rglob("*")) if path.is_file()
    }
