"""Who may ask the pages what, asked as a browser and as somebody else's page would ask."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, NamedTuple

import pytest

from tests.served import await_here
from tunesmith.inference.openai_client import is_loopback
from tunesmith.web.security import Guard, Message, Receive, RequestPolicy, Scope, Send

TOKEN = "t0ken-t0ken-t0ken-t0ken-t0ken"
OWN = {
    "host": "127.0.0.1:8377",
    "content-type": "application/json",
    "x-tunesmith": "1",
    "sec-fetch-site": "same-origin",
}


class Answer(NamedTuple):
    status: int
    headers: dict[str, str]
    body: str


async def inside(scope: Scope, receive: Receive, send: Send) -> None:
    """An app that lets everybody in and wants to be kept."""
    headers = [(b"content-type", b"text/plain"), (b"cache-control", b"public")]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": b"inside"})


def asked(
    headers: Mapping[str, str],
    *,
    method: str = "POST",
    path: str = "/api/vote",
    query: str = "",
    token: str = "",
    admin: str = "",
) -> Answer:
    sent: list[Message] = []

    async def receive() -> Message:
        return {"type": "http.request", "body": b"", "more_body": False}

    async def send(message: Message) -> None:
        sent.append(message)

    raw = [(name.encode(), value.encode()) for name, value in headers.items()]
    scope: dict[str, Any] = {
        "type": "http",
        "method": method,
        "path": path,
        "headers": raw,
        "query_string": query.encode(),
    }
    await_here(Guard(inside, token=token, policy=RequestPolicy(admin_token=admin))(scope, receive, send))
    told = {name.decode(): value.decode() for name, value in sent[0]["headers"]}
    return Answer(sent[0]["status"], told, b"".join(part["body"] for part in sent[1:]).decode())


def test_the_page_itself_is_answered():
    assert asked({**OWN, "origin": "http://127.0.0.1:8377"}).body == "inside"
    assert asked({"host": "localhost:8377"}, method="GET", path="/").status == 200
    assert asked({"host": "[::1]:8377"}, method="GET", path="/").status == 200


@pytest.mark.parametrize(
    ("change", "status"),
    [
        ({"host": "evil.example:8377"}, 421),
        ({"host": "127.0.0.1.evil.example"}, 421),
        ({"host": ""}, 421),
        ({"host": "[:8377"}, 421),
        ({"host": "evil.example@127.0.0.1"}, 421),
        ({"host": "127.0.0.1@evil.example"}, 421),
        ({"host": "127.0.0.1:8377/evil"}, 421),
        ({"host": "127.0.0.1?evil"}, 421),
        ({"host": "127.0.0.1#evil"}, 421),
        ({"host": "127.0.0.1\\evil"}, 421),
        ({"host": "127.0.0.1 evil"}, 421),
        ({"host": "[::1]evil"}, 421),
        ({"origin": "http://evil.example"}, 403),
        ({"origin": "null"}, 403),
        ({"origin": "http://127.0.0.1:9999"}, 403),
        ({"sec-fetch-site": "cross-site"}, 403),
        ({"sec-fetch-site": "same-site"}, 403),
        ({"content-type": "text/plain"}, 415),
        ({"content-type": "application/x-www-form-urlencoded"}, 415),
        ({"content-length": "65537"}, 413),
        ({"content-length": "-1"}, 413),
        ({"transfer-encoding": "chunked"}, 413),
    ],
)
def test_what_the_page_would_not_send_is_refused(change: dict[str, str], status: int):
    answer = asked({**OWN, **change})
    assert answer.status == status
    assert ";" in json.loads(answer.body)["detail"]  # the finding; the cure


def test_a_method_that_sends_nothing_needs_no_type_and_is_told_apart_by_the_app():
    assert asked({name: value for name, value in OWN.items() if name != "content-type"}, method="DELETE").status == 200


def test_a_form_of_another_site_lacks_our_header():
    assert asked({name: value for name, value in OWN.items() if name != "x-tunesmith"}).status == 403


def test_a_page_of_no_address_is_told_no():
    assert asked({**OWN, "origin": "http://["}).status == 403


@pytest.mark.parametrize("method", ["OPTIONS", "PUT", "DELETE"])
def test_a_script_of_another_site_that_asks_first_is_told_no(method: str):
    headers = {"host": OWN["host"], "origin": "http://evil.example", "access-control-request-headers": "x-tunesmith"}
    answer = asked(headers, method=method)
    assert answer.status == 403
    assert not any(name.startswith("access-control") for name in answer.headers)


@pytest.mark.parametrize("path", ["/", "/static/label.js", "/export.jsonl", "/api/next", "/nothing"])
def test_with_a_token_no_route_answers_without_it(path: str):
    for method in ("GET", "POST", "HEAD"):
        assert asked(OWN, method=method, path=path, token=TOKEN).status == 401
    for wrong in (
        {"authorization": "Bearer guess"},
        {"cookie": "tunesmith_8377=guess"},
        {"cookie": f"tunesmith_1={TOKEN}"},
    ):
        assert asked({**OWN, **wrong}, path=path, token=TOKEN).status == 401


def test_the_token_is_taken_as_cookie_and_as_bearer_under_any_name_of_the_machine():
    for right in (
        {"authorization": f"Bearer {TOKEN}"},
        {"cookie": f"other=1; tunesmith_8377={TOKEN}"},
        {"cookie": f'prefs={{"a": 1}}; a[b]=1; bare; tunesmith_8377={TOKEN}'},
    ):
        assert asked({**OWN, **right}, token=TOKEN).body == "inside"
    named = {**OWN, "host": "desk.local:8377", "authorization": f"Bearer {TOKEN}"}
    assert asked(named, token=TOKEN).body == "inside"
    assert asked({**named, "origin": "http://evil.example"}, token=TOKEN).status == 403
    assert asked({**named, "host": ""}, token=TOKEN).body == "inside"  # HTTP/1.0
    assert asked({**named, "host": "evil.example@desk.local"}, token=TOKEN).status == 421


@pytest.mark.parametrize("token", ["", TOKEN])
def test_administration_asks_for_its_own_token_on_loopback_too(token: str):
    for path in ("/admin/load", "/admin/unload", "/admin/nothing"):
        for wrong in (
            {},
            {"authorization": f"Bearer {TOKEN}"},
            {"authorization": "Basic adm1n-adm1n-adm1n-adm1n"},
            {"cookie": "tunesmith_8377=adm1n-adm1n-adm1n-adm1n"},
        ):
            answer = asked({**OWN, **wrong}, path=path, token=token, admin="adm1n-adm1n-adm1n-adm1n")
            assert answer.status == 401
            assert "--admin-token-file" in answer.body
        right = {**OWN, "authorization": "Bearer adm1n-adm1n-adm1n-adm1n"}
        assert asked(right, path=path, token=token, admin="adm1n-adm1n-adm1n-adm1n").body == "inside"
    assert asked({**right, "origin": "http://evil.example"}, path=path, admin="adm1n-adm1n-adm1n-adm1n").status == 403
    assert asked(right, token=TOKEN, admin="adm1n-adm1n-adm1n-adm1n").status == 401  # of other routes it is no key


def test_the_printed_address_becomes_a_cookie_and_leaves_the_address_bar():
    answer = asked({"host": "10.0.0.7:8377"}, method="GET", path="/", query=f"token={TOKEN}", token=TOKEN)
    assert (answer.status, answer.headers["location"], answer.body) == (303, "/", "")
    cookie = answer.headers["set-cookie"]
    assert cookie.startswith(f"tunesmith_8377={TOKEN};")
    assert "HttpOnly" in cookie
    assert "SameSite=Lax" in cookie
    assert asked({"host": "10.0.0.7:8377"}, method="GET", path="/", query="token=guess", token=TOKEN).status == 401
    assert (
        asked({"host": "10.0.0.7:8377"}, method="GET", path="/export.jsonl", query=f"token={TOKEN}", token=TOKEN).status
        == 401
    )


def test_every_answer_forbids_other_origins_scripts_frames_and_keeping():
    for answer in (asked(OWN), asked({**OWN, "host": "evil.example"})):
        assert "default-src 'none'" in answer.headers["content-security-policy"]
        assert "frame-ancestors 'none'" in answer.headers["content-security-policy"]
        assert "unsafe" not in answer.headers["content-security-policy"]
        assert answer.headers["x-content-type-options"] == "nosniff"
        assert answer.headers["cache-control"] == "no-store"


@pytest.mark.parametrize(
    ("host", "private"),
    [("127.0.0.1", True), ("127.8.0.1", True), ("localhost", True), ("::1", True), ("0.0.0.0", False), ("::", False),
     ("192.168.1.5", False), ("localhost.evil.example", False), ("", False)],
)  # fmt: skip
def test_only_addresses_of_this_machine_go_without_a_token(host: str, private: bool):
    assert is_loopback(host) is private
