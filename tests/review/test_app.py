"""The page over HTTP: who is let in, what it may load, videos, frames and decisions."""

from __future__ import annotations

import base64
import io
import re
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest
from fastapi.testclient import TestClient
from PIL import Image

from rbft import storage
from rbft.config import RunConfig
from rbft.errors import JobError
from rbft.review.app import build_app, serve_review
from rbft.review.reviewer import Reviewer
from rbft.video.pool import DecodePool

TOKEN = "a-token"
ROUTES = ("", "rationales", "rationale?id=sorry", "frames?id=sorry", "video?id=sorry")


@pytest.fixture
def client(reviewer: Reviewer, config: RunConfig, decoders: DecodePool) -> Iterator[TestClient]:
    with TestClient(build_app(reviewer, config.video, decoders, TOKEN), base_url=f"http://127.0.0.1/{TOKEN}/") as client:
        yield client


@pytest.mark.parametrize("route", ROUTES)
def test_who_has_the_token_is_let_in_and_nobody_else(client: TestClient, route: str) -> None:
    assert client.get(route).status_code == 200
    for prefix in ("", "another/", f"{TOKEN}x/", f"x/{TOKEN}/", "%61/"):
        refused = client.get(f"http://127.0.0.1/{prefix}{route}")
        assert refused.status_code == 403 and "the address that `rbft review` printed" in refused.json()["detail"]


def test_a_change_without_the_token_is_refused_and_not_made(client: TestClient, reviewer: Reviewer) -> None:
    assert client.post("http://127.0.0.1/change", json={"id": "sorry", "action": "exclude"}).status_code == 403
    assert reviewer.counts()["excluded"] == 0 and not storage.list_files(f"{reviewer.folder}/reviews")


@pytest.mark.parametrize(
    ("host", "status"), [("127.0.0.1:4567", 200), ("localhost:4567", 200), ("evil.example", 400), ("127.0.0.1.evil.example", 400)]
)
def test_only_this_machines_names_are_answered_to(client: TestClient, host: str, status: int) -> None:
    assert client.get("", headers={"Host": host}).status_code == status


def test_the_page_runs_its_own_script_alone_and_loads_nothing_from_elsewhere(client: TestClient) -> None:
    pages = [client.get("") for _ in range(2)]
    nonces = [re.findall(r'nonce="([^"]+)"', page.text) for page in pages]
    assert all(len(set(found)) == 1 and len(found) == 2 for found in nonces) and nonces[0] != nonces[1]
    policy = pages[0].headers["Content-Security-Policy"]
    assert f"script-src 'nonce-{nonces[0][0]}'" in policy and "default-src 'none'" in policy and "unsafe" not in policy
    assert "frame-ancestors 'none'" in policy and pages[0].headers["Referrer-Policy"] == "no-referrer"
    html = pages[0].text
    assert len(re.findall(r"<(?:script|style)\b", html)) == 2
    assert not re.search(r"https?://|<[^>]+ (?:on\w+|style|src)=", html) and TOKEN not in html


@pytest.mark.parametrize("route", ROUTES[1:])
def test_what_is_not_the_page_may_load_nothing(client: TestClient, route: str) -> None:
    headers = client.get(route).headers
    assert headers["Content-Security-Policy"].startswith("default-src 'none'") and headers["X-Content-Type-Options"] == "nosniff"


def test_the_list_has_counts_and_takes_filters(client: TestClient) -> None:
    found = client.get("rationales", params={"gate": "no_refusal"}).json()
    assert found["num_found"] == 1 and found["counts"] == {"untouched": 4, "kept": 0, "edited": 0, "excluded": 0}
    (row,) = found["rows"]
    assert row["id"] == "sorry" and row["label"] == "abnormal" and "no_refusal" in row["failed"]
    assert [row["id"] for row in client.get("rationales", params={"order": "manifest", "offset": 2}).json()["rows"]] == ["broken", "gone"]


def test_a_decision_is_on_disk_and_says_who_made_it(client: TestClient, config: RunConfig) -> None:
    edited = client.post("change", json={"id": "sorry", "action": "edit", "text": "Subjects: <b>a cat</b>.", "note": "look"}).json()
    assert (edited["status"], edited["text"], edited["missing"]) == (
        "edited",
        "Subjects: <b>a cat</b>.",
        ["Attributes", "Actions", "Scenes"],
    )
    assert client.post("change", json={"id": "good/1", "action": "exclude"}).json()["counts"]["excluded"] == 1
    eve = Reviewer(config, "eve")
    assert eve.counts() == {"untouched": 2, "kept": 0, "edited": 1, "excluded": 1}
    assert (eve.item("sorry").history[-1].by, eve.item("sorry").history[-1].note) == ("ada", "look")
    eve.change("sorry", "restore")
    seen = client.get("rationale", params={"id": "sorry"}).json()
    assert seen["status"] == "kept" and [change["by"] for change in seen["history"]] == ["ada", "eve"]
    assert client.post("change", json={"id": "sorry", "action": "undo"}).json()["text"] == "Subjects: <b>a cat</b>."


@pytest.mark.parametrize(
    ("body", "status"),
    [
        ({"id": "sorry", "action": "edit", "text": "  "}, 422),
        ({"id": "sorry", "action": "delete"}, 422),
        ({"id": "sorry", "action": "exclude", "by": "somebody else"}, 422),
        ({"id": "error", "action": "exclude"}, 404),
        ({"id": "none", "action": "undo"}, 404),
    ],
)
def test_what_is_no_decision_is_refused(client: TestClient, reviewer: Reviewer, body: dict[str, str], status: int) -> None:
    assert client.post("change", json=body).status_code == status
    assert not storage.list_files(f"{reviewer.folder}/reviews")


def test_a_player_can_seek_in_the_video(client: TestClient, clips: dict[str, Path]) -> None:
    content = clips["good/1"].read_bytes()
    whole = client.get("video", params={"id": "good/1"})
    part = client.get("video", params={"id": "good/1"}, headers={"Range": "bytes=100-199"})
    assert (whole.status_code, whole.content, whole.headers["Content-Type"]) == (200, content, "video/mp4")
    assert (part.status_code, part.content) == (206, content[100:200])
    assert part.headers["Content-Range"] == f"bytes 100-199/{len(content)}"


@pytest.mark.parametrize("id_", ["../../etc/passwd", "/etc/passwd", "file:///etc/passwd", "", "error"])
def test_a_video_is_asked_for_by_an_id_of_the_review_and_by_nothing_else(client: TestClient, id_: str) -> None:
    for route in ("video", "frames", "rationale"):
        assert client.get(route, params={"id": id_}).status_code == 404


def test_a_video_by_uri_is_fetched_and_one_that_is_gone_is_told(client: TestClient, reviewer: Reviewer, clips: dict[str, Path]) -> None:
    example = reviewer.item("sorry").example
    object.__setattr__(example, "uri", clips["sorry"].as_uri())
    assert client.get("video", params={"id": "sorry"}).content == clips["sorry"].read_bytes()
    answer = client.get("video", params={"id": "gone"})
    assert answer.status_code == 404 and answer.json()["code"] == "video_missing"


def test_the_strip_shows_the_frames_the_model_saw(client: TestClient) -> None:
    frames = client.get("frames", params={"id": "sorry"}).json()
    assert [frame["timestamp_s"] for frame in frames] == pytest.approx([0, 1, 2, 3])
    head, _, content = frames[0]["uri"].partition(",")
    assert head == "data:image/jpeg;base64" and Image.open(io.BytesIO(base64.b64decode(content))).size == (56, 56)


def test_a_video_that_cannot_be_decoded_is_told_in_place_of_its_frames(client: TestClient) -> None:
    answer = client.get("frames", params={"id": "broken"})
    assert answer.status_code == 422 and answer.json()["code"].startswith("video") and "broken.mp4" in answer.json()["detail"]


def test_a_port_that_is_taken_is_told(reviewer: Reviewer, config: RunConfig) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken, pytest.raises(JobError, match="give another --port"):
        serve_review(reviewer, config.video, taken.getsockname()[1], lambda url: None)
