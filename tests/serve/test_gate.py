"""Who is let in, walked over every route of the app; and what every response has."""

import asyncio
from pathlib import Path
from typing import Any

import httpx
import pytest

from rbft.config import ServeConfig, load_config
from rbft.errors import ConfigError
from rbft.keys import add_key, remove_key
from serve.app import build_app
from serve.keys import OPEN_PATHS
from serve.problems import MEDIA_TYPE
from tests.serve.scripted import VERSION, ScriptedClassifier, raising, request


@pytest.fixture
def keys(tmp_path: Path) -> Path:
    return tmp_path / "keys.txt"


def _routes(config: ServeConfig) -> set[tuple[str, str]]:
    app = build_app(ScriptedClassifier(), config, 1, 1)
    return {(method, route.path) for route in app.routes for method in route.methods}  # type: ignore[attr-defined]


def test_every_route_is_closed_but_health(keys: Path) -> None:
    add_key(keys, "a")
    config = {"keys": str(keys)}
    routes = _routes(ServeConfig(keys=str(keys)))
    assert {
        ("POST", "/v1/classify"),
        ("POST", "/v1/rationale"),
        ("POST", "/v1/frames"),
        ("GET", "/v1/task"),
        ("GET", "/metrics"),
        ("GET", "/openapi.json"),
    } <= routes
    unknown = {
        ("GET", "/v1/none"),
        ("POST", "/"),
        ("POST", "/healthz"),
        ("GET", "/page.html"),
        ("GET", "/assets/page.js"),
        ("GET", "/v1/samples/1"),
        ("GET", "/healthz/"),
        ("GET", "http://127.0.0.1//readyz"),
        ("OPTIONS", "/v1/classify"),
    }
    for method, path in routes | unknown:
        response = request(ScriptedClassifier(), method, path, config)
        if path in OPEN_PATHS and method in ("GET", "HEAD"):
            assert response.status_code in (200, 405), path
        else:
            assert response.status_code == 401, path
            assert response.headers["www-authenticate"] == "Bearer" and response.headers["content-type"] == MEDIA_TYPE
            assert method == "HEAD" or response.json()["code"] == "unauthorized"


def test_a_key_opens_every_route(keys: Path) -> None:
    headers = {"Authorization": f"Bearer {add_key(keys, 'a')}"}
    for method, path in _routes(ServeConfig(keys=str(keys))):
        assert request(ScriptedClassifier(), method, path, {"keys": str(keys)}, headers=headers).status_code not in (401, 403), path


def test_only_a_whole_key_by_the_bearer_scheme_is_one(keys: Path) -> None:
    key = add_key(keys, "a")
    taken_back = add_key(keys, "b")
    config = {"keys": str(keys)}
    remove_key(keys, "b")

    def status(header: str) -> int:
        return request(ScriptedClassifier(), "GET", "/v1/task", config, headers={"Authorization": header.encode("latin-1")}).status_code

    assert status(f"Bearer {key}") == status(f"bearer  {key} ") == 200
    wrong = [
        key,
        f"Basic {key}",
        "Bearer",
        "Bearer ",
        f"Bearer {key[:-1]}",
        f"Bearer {key}x",
        f"Bearer {key},{key}",
        f"Bearer {taken_back}",
        "Bearer \xff",
    ]
    assert [status(header) for header in wrong] == [401] * len(wrong)


def test_without_keys_only_this_machine_by_its_own_name_is_answered() -> None:
    def status(client: str, host: str, path: str = "/v1/task") -> int:
        return request(ScriptedClassifier(), "GET", path, client=(client, 123), headers={"Host": host}).status_code

    assert [status("127.0.0.1", host) for host in ("127.0.0.1:8000", "localhost", "LOCALHOST:80", "[::1]:8000")] == [200] * 4
    assert status("::1", "localhost") == 200
    assert status("10.0.0.7", "localhost") == 403
    assert [status("127.0.0.1", host) for host in ("evil.example", "127.0.0.1.evil.example", "10.0.0.7", "[::2]", "")] == [403] * 5
    assert status("10.0.0.7", "evil.example", "/healthz") == 200


@pytest.mark.parametrize("header", ["X-Forwarded-For", "X-Real-IP", "Forwarded", "Via"])
def test_without_keys_whoever_comes_through_a_proxy_is_refused(header: str) -> None:
    assert request(ScriptedClassifier(), "GET", "/v1/task", headers={header: "10.0.0.7"}).status_code == 403


def test_without_keys_another_sites_page_is_refused_and_ours_is_not() -> None:
    def status(site: str) -> int:
        upload = {"video": ("clip.mp4", b"some bytes")}
        return request(ScriptedClassifier(), "POST", "/v1/classify", headers={"Sec-Fetch-Site": site}, files=upload).status_code

    assert [status(site) for site in ("same-origin", "none", "same-site", "cross-site", "new-kind")] == [200, 200, 403, 403, 403]


def test_without_keys_a_browser_that_tells_only_the_origin_of_another_page_is_refused() -> None:
    def status(origin: str, host: str) -> int:
        headers = {"Origin": origin, "Host": host}
        return request(ScriptedClassifier(), "POST", "/v1/classify", headers=headers, files={"video": b"some bytes"}).status_code

    hosts = ("127.0.0.1:8000", "localhost", "[::1]:8000")
    assert [status(f"http://{host}", host) for host in hosts] == [200] * 3
    assert status("http://LocalHost:8000", "localhost:8000") == 200
    elsewhere = ["https://evil.example", "http://127.0.0.1:8001", "http://127.0.0.1", "http://localhost:8000", "null", ""]
    assert [status(origin, "127.0.0.1:8000") for origin in elsewhere] == [403] * 6


def test_with_keys_a_page_of_another_origin_may_ask_if_it_has_one(keys: Path) -> None:
    headers = {"Authorization": f"Bearer {add_key(keys, 'a')}", "Origin": "https://app.example"}
    assert request(ScriptedClassifier(), "GET", "/v1/task", {"keys": str(keys)}, headers=headers).status_code == 200


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "10.1.2.3", "video.example"])
def test_others_can_reach_it_only_with_keys(repository: Path, host: str) -> None:
    recipe = repository / "configs" / "miniature.yaml"
    with pytest.raises(ConfigError, match=r"rbft keys add"):
        load_config(recipe, [f"serve.host='{host}'"])
    assert load_config(recipe, [f"serve.host='{host}'", "serve.keys=keys.txt"]).serve.host == host
    assert load_config(recipe, ["serve.host='::1'"]).serve.keys is None


def _answered(path: str, classifier: ScriptedClassifier | None = None) -> httpx.Response:
    return request(classifier or ScriptedClassifier(), "GET", path)


def test_every_response_has_an_id_the_models_version_and_its_time(keys: Path) -> None:
    add_key(keys, "a")
    responses = [_answered(path) for path in ("/healthz", "/v1/task", "/v1/none")]
    responses += [_answered("/readyz", ScriptedClassifier(raising(ValueError("a bug"))))]
    responses += [request(ScriptedClassifier(), "GET", "/v1/task", {"keys": str(keys)})]
    assert [response.status_code for response in responses] == [200, 200, 404, 500, 401]
    for response in responses:
        assert response.headers["x-model-version"] == VERSION.fingerprint
        assert response.headers["server-timing"].startswith("total;dur=")
        assert response.headers["x-content-type-options"] == "nosniff"
        assert response.headers["content-security-policy"].startswith("default-src 'none'")
    assert len({response.headers["x-request-id"] for response in responses}) == len(responses)


def test_a_client_does_not_choose_the_request_id() -> None:
    response = request(ScriptedClassifier(), "GET", "/healthz", headers={"X-Request-ID": "mine"})
    assert response.headers["x-request-id"] != "mine"


@pytest.mark.parametrize(
    ("given", "is_taken"), [("0f-proxy-made-this", True), ("x" * 65, False), ("short", False), ("a b\tc: key=admin", False), ("", False)]
)
def test_behind_a_proxy_that_gives_ids_its_is_the_one_unless_it_could_forge_a_log(given: str, is_taken: bool) -> None:
    async def send() -> httpx.Response:
        app = build_app(ScriptedClassifier(), ServeConfig(), 1, 1, proxy_adds_id=True)
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://127.0.0.1") as http:
            return await http.post("/v1/classify", files={"video": b"x"}, headers={"X-Request-ID": given})

    response = asyncio.run(send())
    assert "x-request-id" not in response.headers, "it adds that itself"
    assert (response.json()["request_id"] == given) == is_taken and response.json()["request_id"]


def test_the_log_tells_who_asked_what_and_nothing_of_the_content(keys: Path, caplog: pytest.LogCaptureFixture) -> None:
    key = add_key(keys, "front-desk")
    headers = {"Authorization": f"Bearer {key}"}
    upload: dict[str, Any] = {"files": {"video": ("secret-name.mp4", b"secret-bytes")}, "data": {"context": "secret-context"}}
    with caplog.at_level("INFO"):
        response = request(ScriptedClassifier(), "POST", "/v1/classify", {"keys": str(keys)}, headers=headers, **upload)
        request(ScriptedClassifier(), "GET", "/secret-path?secret-query", {"keys": str(keys)}, headers=headers)
        request(ScriptedClassifier(), "SECRET", "/v1/task", {"keys": str(keys)}, headers=headers)
    said = "\n".join(record.getMessage() for record in caplog.records if record.name.startswith("serve"))
    assert f"request_id={response.headers['x-request-id']} key=front-desk method=POST route=/v1/classify status=200" in said
    assert "secret" not in said.lower() and key not in said
