"""Every page of the studio that a link leads to: axe-core, phone width, security policy and requests."""

from __future__ import annotations

import contextlib
import io
import json
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Browser, Page, ViewportSize, expect

from tests.tiny import tiny_decoder
from tests.web.conftest import Served
from tunesmith import tune
from tunesmith.cli.main import main
from tunesmith.web.studio.jobs import COMMAND, OUTPUT, Command, State

SERIOUS = ("serious", "critical")
PHONE = 380  # pixels
WIDE = ViewportSize(width=1280, height=900)
RECIPE = """\
model: ./tiny
data: {train: talk.jsonl, test: 10, validation: 8}
objective: instruct
technique: lora
schedule: {epochs: 1, probe: false}
retention: false
"""


def finished_job(folder: Path, number: int, *words: str) -> None:
    """Write the folder of a job, as if the command had run in a process of its own."""
    place, output = folder / ".studio" / "jobs" / f"2026010{number}-000000-0-0", io.StringIO()
    place.mkdir(parents=True)
    with contextlib.redirect_stdout(output), contextlib.chdir(folder):
        assert main([*words, "--json", "--offline"]) == 0
    command = Command([*words, "--json", "--offline"], str(folder), subject=words[1])
    place.joinpath(COMMAND).write_text(json.dumps(asdict(command)), "utf-8")
    place.joinpath(OUTPUT).write_text(output.getvalue(), "utf-8")
    State("finished", started=1.0, ended=2.0, code=0).write(place)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A working folder with rows, a recipe, two runs, and what the commands of the page have found."""
    folder = tmp_path_factory.mktemp("studio")
    tiny_decoder(folder / "tiny")
    rows = [{"prompt": f"question {n}", "completion": f"answer {n % 3}"} for n in range(60)]
    folder.joinpath("talk.jsonl").write_text("".join(json.dumps(row) + "\n" for row in [*rows, rows[0]]), "utf-8")
    recipe = folder / "talk.yaml"
    recipe.write_text(RECIPE, "utf-8")
    for seed in (0, 1):
        tune(recipe, out=folder / "runs" / f"talk-{seed}", seed=seed, offline=True, progress=False)
    for number, words in enumerate(
        (["audit", "talk.jsonl"], ["plan", "talk.yaml"], ["tune", "talk.yaml", "--dry-run"])
    ):
        finished_job(folder, number + 1, *words)
    return folder


@pytest.fixture(scope="module")
def studio(folder: Path) -> Iterator[Served]:
    served = Served("studio", str(folder), "--offline")
    served.start()
    yield served
    served.kill()


def addresses(page: Page, start: str) -> Iterator[str]:
    """Yield the address of each page of this server that links lead to, one for each path and names of its query."""
    waiting, seen = [start], set[str]()
    links = "[...document.querySelectorAll('main a[href], nav a[href]')].map(a => a.href)"
    while waiting:
        address = waiting.pop(0)
        shape = address.split("#")[0].split("=")[0]
        if shape in seen or not address.startswith(start) or "report" in address:
            continue
        seen.add(shape)
        page.goto(address, wait_until="load")
        expect(page.locator(".htmx-request")).to_have_count(0)
        yield address
        waiting += page.evaluate(links)


@pytest.mark.long
@pytest.mark.browser
def test_each_page_is_accessible_fits_a_phone_and_stays_on_this_machine(browser: Browser, studio: Served):
    # Without animations: in the middle of one, colours are neither those of the light nor of the dark scheme.
    page, axe = browser.new_context(viewport=WIDE, reduced_motion="reduce").new_page(), Axe()
    found = list[str]()
    requested, policies = set[str](), list[str]()
    page.on("request", lambda request: requested.add("/".join(request.url.split("/")[:3])))
    page.on("response", lambda response: policies.append(response.headers.get("content-security-policy", "")))
    visited = []
    for address in addresses(page, studio.url):
        visited.append(address)
        for scheme in ("light", "dark"):
            page.emulate_media(color_scheme=scheme)  # type: ignore[arg-type]
            found += [f"{address} {scheme}: {text}" for text in problems(axe, page)]
        page.set_viewport_size({"width": PHONE, "height": 800})
        width = fitted_width(page)
        found += [f"{address}: {width} pixels wide on a phone of {PHONE}"] if width > PHONE else []
        page.set_viewport_size(WIDE)
    page.goto(f"{studio.url}ship")  # a form that opens another page
    page.get_by_label("Run").select_option("talk-0")
    page.get_by_role("button", name="Choose").click()
    expect(page).to_have_url(f"{studio.url}ship?run=talk-0")
    page.context.close()
    assert found == [], "\n".join(found)
    assert len(visited) >= 10, visited  # seven screens, a file, a run, a job
    assert requested == {studio.url.rstrip("/")}
    assert all("unsafe" not in policy and "default-src" in policy for policy in policies)


def fitted_width(page: Page) -> int:
    """The width of a page in pixels, once its charts have followed the window."""
    for _ in range(50):
        width = int(page.evaluate("document.documentElement.scrollWidth"))
        if width <= PHONE:
            break
        page.wait_for_timeout(100)
    return width


def problems(axe: Any, page: Page) -> Iterator[str]:
    """Yield what axe-core calls serious or critical in a page."""
    for violation in axe.run(page).response["violations"]:
        if violation["impact"] in SERIOUS:
            places = ", ".join(node["html"][:120] for node in violation["nodes"][:3])
            yield f"{violation['id']}: {violation['help']}: {places}"
