"""What the page stands on: pictures of the sampled frames, sample clips, and files that are the same for everybody."""

import asyncio
import base64
import io
import re
from pathlib import Path

import httpx
import pytest
from PIL import Image

from rbft.api import ClassifyAnswer, FramesAnswer, TaskAnswer
from rbft.config import load_config
from rbft.keys import add_key
from serve.keys import OPEN_PATHS
from serve.page import PAGE_PATHS
from tests.serve.scripted import ScriptedClassifier, client_of, request

CLIP = {"video": ("clip.mp4", b"some bytes")}


def _form(video_id: str) -> dict[str, tuple[None, str]]:
    return {"video_id": (None, video_id)}


def test_the_frames_of_a_video_are_all_that_were_sampled_as_jpegs_with_their_times() -> None:
    async def scenario() -> httpx.Response:
        async with client_of(ScriptedClassifier()) as http:
            answer = ClassifyAnswer.model_validate_json((await http.post("/v1/classify", files=CLIP)).content)
            return await http.post("/v1/frames", files=_form(answer.video_id or ""))

    shown = FramesAnswer.model_validate_json(asyncio.run(scenario()).content)
    assert [frame.time_s for frame in shown.frames] == [0.0, 1.0, 2.0, 3.0]
    for frame in shown.frames:
        kind, _, content = frame.uri.partition(",")
        image = Image.open(io.BytesIO(base64.b64decode(content)))
        assert (kind, image.format) == ("data:image/jpeg;base64", "JPEG")
        assert image.size == (frame.width, frame.height) == (28, 28)
    assert {"queue", "encode", "total"} <= shown.timing_s.keys()


def test_another_keys_video_a_gone_one_and_one_that_never_was_are_the_same(tmp_path: Path) -> None:
    keys = tmp_path / "keys.txt"
    mine, theirs = ({"Authorization": f"Bearer {add_key(keys, name)}"} for name in "ab")

    async def scenario() -> list[httpx.Response]:
        async with client_of(ScriptedClassifier(), keys=str(keys), clip_cache_s=1.0) as http:
            video_id = (await http.post("/v1/classify", files=CLIP, headers=mine)).json()["video_id"]
            seen = await http.post("/v1/frames", files=_form(video_id), headers=mine)
            others = await http.post("/v1/frames", files=_form(video_id), headers=theirs)
            never = await http.post("/v1/frames", files=_form("x" * 24), headers=mine)
            await asyncio.sleep(1.1)
            return [seen, others, never, await http.post("/v1/frames", files=_form(video_id), headers=mine)]

    seen, *refused = asyncio.run(scenario())
    assert seen.status_code == 200
    assert {(response.status_code, response.json()["code"], response.json()["detail"]) for response in refused} == {
        (404, "clip_expired", refused[0].json()["detail"])
    }


@pytest.mark.parametrize("form", [{}, {"video_id": (None, "x" * 65)}, {"video": CLIP["video"]}])
def test_frames_of_no_id_are_refused(form: dict[str, tuple[str | None, str | bytes]]) -> None:
    response = request(ScriptedClassifier(), "POST", "/v1/frames", files=form or {"other": (None, "x")})
    assert (response.status_code, response.json()["code"]) == (422, "request")


def test_samples_are_told_by_number_and_those_that_are_not_there_left_out(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    files = [tmp_path / name for name in ("<b>secret name.mp4", "absent.mp4", "c.html")]
    files[0].write_bytes(b"first")
    files[2].write_bytes(b"<script>second</script>")
    config = {"samples": tuple(map(str, files))}

    def get(path: str) -> httpx.Response:
        return request(ScriptedClassifier(), "GET", path, config)

    assert TaskAnswer.model_validate_json(get("/v1/task").content).num_samples == 2
    assert "absent.mp4" in caplog.text
    assert [get(f"/v1/samples/{number}").content for number in (1, 2)] == [b"first", b"<script>second</script>"]
    for number in (1, 2):
        headers = get(f"/v1/samples/{number}").headers
        assert headers["content-type"] == "application/octet-stream" and "secret" not in str(headers), "no browser takes it for a page"
    assert [get(f"/v1/samples/{number}").status_code for number in ("0", "3", "-1", "99999999999999999999", "x", "1/../../keys")] == [
        *([404] * 4),
        422,
        404,
    ]


def test_a_sample_that_goes_while_the_service_runs_is_not_found(tmp_path: Path) -> None:
    file = tmp_path / "a.mp4"
    file.write_bytes(b"first")

    async def scenario() -> list[int]:
        async with client_of(ScriptedClassifier(), samples=(str(file),)) as http:
            before = await http.get("/v1/samples/1")
            file.unlink()
            return [before.status_code, (await http.get("/v1/samples/1")).status_code]

    assert asyncio.run(scenario()) == [200, 404]


def test_there_are_no_samples_unless_they_are_named(repository: Path) -> None:
    assert request(ScriptedClassifier(), "GET", "/v1/task").json()["num_samples"] == 0
    named = load_config(repository / "configs" / "miniature.yaml").serve.samples
    assert named and all(Path(path).is_absolute() and Path(path).parent == repository / "runs/miniature/world/clips" for path in named)


@pytest.mark.parametrize("path", sorted(PAGE_PATHS))
def test_the_page_is_open_and_may_load_from_the_service_alone(path: str, tmp_path: Path) -> None:
    assert path in OPEN_PATHS
    add_key(tmp_path / "keys.txt", "a")
    response = request(ScriptedClassifier(), "GET", path, {"keys": str(tmp_path / "keys.txt")}, client=("10.0.0.7", 1))
    assert response.status_code == 200
    assert response.headers["x-content-type-options"] == "nosniff" and "set-cookie" not in response.headers
    policy = dict(part.split(" ", 1) for part in response.headers["content-security-policy"].split("; "))
    assert policy["default-src"] == policy["base-uri"] == policy["form-action"] == policy["frame-ancestors"] == "'none'"
    assert policy["script-src"] == policy["style-src"] == policy["connect-src"] == "'self'"
    assert "unsafe" not in response.headers["content-security-policy"]


def test_the_page_loads_only_what_is_served_beside_it_and_has_nothing_inline() -> None:
    html = request(ScriptedClassifier(), "GET", "/").text
    loaded = set(re.findall(r'(?:src|href)="([^"#]*)"', html))
    for path in PAGE_PATHS:
        if path.endswith(".js"):
            loaded |= set(re.findall(r'from "([^"]*)"', request(ScriptedClassifier(), "GET", path).text))
    assert loaded == (PAGE_PATHS - {"/"}) | {"data:,"}
    assert not re.search(r"<script(?! src)|<style|\sstyle=|\son\w+=", html)
