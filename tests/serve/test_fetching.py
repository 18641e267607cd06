"""Fetching for real: TLS on loopback, which only a test's policy lets pass, and files of a folder."""

import asyncio
import contextlib
import ipaddress
import os
import resource
import ssl
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import httpx
import pytest

from rbft import errors, storage
from rbft.config import ServeConfig, UrlsConfig
from serve.addresses import Address, is_public
from serve.app import build_app
from serve.fetching import Fetcher
from serve.links import Link
from tests.s3 import FlakyS3
from tests.serve.hosts import Host, Say, host, raw, response
from tests.serve.scripted import ScriptedClassifier

NAME = "clips.example.org"
CONTENT = bytes(range(256)) * 40


def _hang(connection: ssl.SSLSocket) -> None:
    connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nx")
    with contextlib.suppress(OSError):
        connection.recv(1)  # until the client goes


def _drip(connection: ssl.SSLSocket) -> None:
    connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 1000000\r\n\r\n")
    while True:  # until the client goes
        connection.sendall(b"x")
        time.sleep(0.02)


def _endless(connection: ssl.SSLSocket) -> None:
    connection.sendall(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
    while True:
        connection.sendall(b"1000\r\n" + bytes(4096) + b"\r\n")


SAYS: dict[str, Say] = {
    "/good": response(CONTENT),
    "/good?a=b&c=@": response(CONTENT),
    "/chunked": raw(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n2\r\nde\r\n0\r\n\r\n"),
    "/until-close": raw(b"HTTP/1.1 200 OK\r\n\r\nabcde"),
    "/moved": response(b"", "302 Found", "Location: https://clips.example.org/good"),
    "/moved-inside": response(b"", "301 Moved Permanently", "Location: http://169.254.169.254/latest/meta-data/"),
    "/missing": response(b"no", "404 Not Found"),
    "/broken": response(b"no", "500 Internal Server Error"),
    "/part": response(b"abc", "206 Partial Content", "Content-Range: bytes 0-2/10"),
    "/none": raw(b"HTTP/1.1 204 No Content\r\n\r\n"),
    "/gzip": response(b"\x1f\x8b", "200 OK", "Content-Encoding: gzip"),
    "/short": raw(b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nabc"),
    "/two-lengths": raw(b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\nContent-Length: 5\r\n\r\nabcde"),
    "/no-http": raw(b"SSH-2.0-OpenSSH_9.2\r\n"),
    "/nothing": raw(b""),
    "/header-bomb": raw(b"HTTP/1.1 200 OK\r\nX: " + b"y" * 300_000 + b"\r\n\r\n"),
    "/upgrade": raw(b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: h2c\r\n\r\n"),
    "/long-length": raw(b"HTTP/1.1 200 OK\r\nContent-Length: " + b"9" * 5000 + b"\r\n\r\n"),
    "/too-large": response(bytes(20_000)),
    "/endless": _endless,  # type: ignore[dict-item]
    "/hang": _hang,  # type: ignore[dict-item]
    "/drip": _drip,  # type: ignore[dict-item]
}


@pytest.fixture(scope="module")
def clips(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Host]:
    with host(tmp_path_factory.mktemp("certificate"), SAYS, NAME) as running:
        yield running


def _resolving(*addresses: str) -> Any:
    async def resolve(name: str, port: int) -> Sequence[str]:
        assert name == NAME, "no other name is ever looked up"
        return addresses

    return resolve


def _is_loopback(address: Address) -> bool:
    return address.is_loopback


def _fetcher(clips: Host, *addresses: str, tls: ssl.SSLContext | None = None, **config: Any) -> Fetcher:
    allowed = UrlsConfig(hosts=(f"{NAME}:{clips.port}",), **config)
    resolve = _resolving(*(addresses or ("127.0.0.1",)))
    return Fetcher(allowed, 15_000, resolve=resolve, is_allowed=_is_loopback, tls=tls or clips.tls)


def _fetch(fetcher: Fetcher, url: str) -> bytes:
    async def fetch() -> bytes:
        async with fetcher.fetched(Link(url)) as path:
            return path.read_bytes()

    return asyncio.run(fetch())


def _url(clips: Host, path: str) -> str:
    return f"https://{NAME}:{clips.port}{path}"


def test_a_video_is_fetched_from_the_address_that_was_looked_at_by_the_hosts_name(clips: Host) -> None:
    assert _fetch(_fetcher(clips), _url(clips, "/good?a=b&c=@")) == CONTENT
    head = clips.heads[-1]
    assert head.startswith("GET /good?a=b&c=@ HTTP/1.1\r\n") and f"\r\nHost: {NAME}:{clips.port}\r\n" in head
    assert "\r\nAccept-Encoding: identity\r\n" in head and clips.names[-1] == NAME


@pytest.mark.parametrize("path", ["/chunked", "/until-close"])
def test_a_length_need_not_be_known(clips: Host, path: str) -> None:
    assert _fetch(_fetcher(clips), _url(clips, path)) == b"abcde"


@pytest.mark.parametrize(
    ("path", "says"),
    [
        *(
            ("/moved", "redirects are not followed"),
            ("/moved-inside", "redirects are not followed"),
            ("/missing", "404"),
            ("/broken", "500"),
        ),
        *(
            ("/part", "206"),
            ("/none", "204"),
            ("/gzip", "compresses"),
            ("/short", "Error"),
            ("/two-lengths", "Error"),
            ("/no-http", "Error"),
            ("/nothing", "Error"),
        ),
        *(("/header-bomb", "Error"), ("/upgrade", "Error"), ("/long-length", "Error")),
    ],
)
def test_what_a_host_answers_otherwise_is_no_video(clips: Host, path: str, says: str) -> None:
    num_asked = len(clips.heads)
    with pytest.raises(errors.UrlUnreachableError, match=says) as raised:
        _fetch(_fetcher(clips), _url(clips, path))
    assert "169.254" not in str(raised.value) and len(clips.heads) == num_asked + 1, "asked once, and nobody else"


@pytest.mark.parametrize("path", ["/too-large", "/endless"])
def test_bytes_are_counted_while_they_come(clips: Host, path: str) -> None:
    with pytest.raises(errors.UploadTooLargeError, match="15000 bytes"):
        _fetch(_fetcher(clips), _url(clips, path))


@pytest.mark.parametrize("path", ["/hang", "/drip"])
def test_a_deadline_holds_for_the_whole(clips: Host, path: str) -> None:
    with pytest.raises(errors.UrlUnreachableError, match=r"within 0\.5 s"):
        _fetch(_fetcher(clips, timeout_s=0.5), _url(clips, path))


def test_the_certificate_must_be_the_hosts_and_of_someone_trusted(clips: Host, tmp_path: Path) -> None:
    with pytest.raises(errors.UrlUnreachableError):
        _fetch(_fetcher(clips, tls=ssl.create_default_context()), _url(clips, "/good"))
    with host(tmp_path, SAYS, "other.example.org") as other, pytest.raises(errors.UrlUnreachableError):
        _fetch(_fetcher(other), _url(other, "/good"))
    assert other.heads == []


@pytest.mark.parametrize("addresses", [("10.0.0.1",), ("127.0.0.1", "10.0.0.1"), ("::ffff:127.0.0.1", "fe80::1%lo", "127.0.0.1"), ()])
def test_a_host_with_one_address_that_is_not_allowed_is_not_asked_at_all(clips: Host, addresses: tuple[str, ...]) -> None:
    num_asked = len(clips.names)
    fetcher = Fetcher(
        UrlsConfig(hosts=(f"{NAME}:{clips.port}",)), 100, resolve=_resolving(*addresses), is_allowed=_is_loopback, tls=clips.tls
    )
    with pytest.raises(errors.UrlRefusedError, match="public internet") as raised:
        _fetch(fetcher, _url(clips, "/good"))
    assert "10.0.0" not in str(raised.value) and len(clips.names) == num_asked


def test_this_machine_is_not_asked_by_a_service_that_is_no_test(clips: Host) -> None:
    fetcher = Fetcher(UrlsConfig(hosts=(f"{NAME}:{clips.port}",)), 100, resolve=_resolving("127.0.0.1"), tls=clips.tls)
    with pytest.raises(errors.UrlRefusedError):
        _fetch(fetcher, _url(clips, "/good"))
    assert not is_public(ipaddress.ip_address("127.0.0.1"))


def test_a_name_that_leads_elsewhere_the_second_time_is_looked_up_once(clips: Host) -> None:
    answers = [["127.0.0.1"], ["10.0.0.1"]]

    async def resolve(name: str, port: int) -> Sequence[str]:
        return answers.pop(0)

    fetcher = Fetcher(UrlsConfig(hosts=(f"{NAME}:{clips.port}",)), 15_000, resolve=resolve, is_allowed=_is_loopback, tls=clips.tls)
    assert _fetch(fetcher, _url(clips, "/good")) == CONTENT and answers == [["10.0.0.1"]]


def test_of_several_addresses_the_first_that_answers_is_taken(clips: Host) -> None:
    assert _fetch(_fetcher(clips, "127.0.0.9", "127.0.0.1"), _url(clips, "/good")) == CONTENT


def test_a_host_that_is_not_there_or_has_no_name_is_said(clips: Host) -> None:
    async def unknown(name: str, port: int) -> Sequence[str]:
        raise OSError("Name or service not known")

    for resolve in (unknown, _resolving("127.0.0.9")):
        fetcher = Fetcher(UrlsConfig(hosts=(f"{NAME}:{clips.port}",)), 100, resolve=resolve, is_allowed=_is_loopback, tls=clips.tls)
        with pytest.raises(errors.UrlUnreachableError):
            _fetch(fetcher, _url(clips, "/good"))


def test_proxies_of_the_environment_are_not_asked(clips: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    assert _fetch(_fetcher(clips), _url(clips, "/good")) == CONTENT


@pytest.mark.parametrize("is_stored", [False, True])
def test_a_disk_that_takes_no_more_is_not_the_hosts_fault(
    clips: Host, folder: Path, is_stored: bool, caplog: pytest.LogCaptureFixture
) -> None:
    fetcher = Fetcher(UrlsConfig(storage=(f"file://{folder}/",)), 15_000) if is_stored else _fetcher(clips)
    url = f"file://{folder}/a.mp4" if is_stored else _url(clips, "/good")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (len(CONTENT) // 2, hard))
    try:
        with pytest.raises(errors.OverloadedError, match="no room"):
            _fetch(fetcher, url)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert "errno=EFBIG" in caplog.text
    assert _fetch(fetcher, url) == CONTENT


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "clips"
    (folder / "below").mkdir(parents=True)
    (folder / "a.mp4").write_bytes(CONTENT)
    (folder / "below" / "b.gz").write_bytes(b"\x1f\x8b not opened")
    (folder / "large").write_bytes(bytes(20_000))
    (tmp_path / "secret").write_bytes(b"secret")
    (folder / "out").symlink_to(tmp_path / "secret")
    (folder / "up").symlink_to(tmp_path)
    (folder / "inside").symlink_to(folder / "a.mp4")
    os.mkfifo(folder / "pipe")
    return folder


def test_files_of_a_named_folder_are_read_as_they_are(folder: Path) -> None:
    fetcher = Fetcher(UrlsConfig(storage=(f"file://{folder}/",)), 15_000)
    assert _fetch(fetcher, f"file://{folder}/a.mp4") == _fetch(fetcher, f"file://{folder}/inside") == CONTENT
    assert _fetch(fetcher, f"file://{folder}/below/b.gz") == b"\x1f\x8b not opened"
    for name in ("absent.mp4", "below", "pipe", "a.mp4/x"):
        with pytest.raises(errors.UrlUnreachableError) as raised:
            _fetch(fetcher, f"file://{folder}/{name}")
        assert str(folder) not in str(raised.value)
    for name in ("out", "up/secret"):
        with pytest.raises(errors.UrlRefusedError, match="leads out"):
            _fetch(fetcher, f"file://{folder}/{name}")
    with pytest.raises(errors.UploadTooLargeError):
        _fetch(fetcher, f"file://{folder}/large")


def test_objects_of_a_named_bucket_are_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "test")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "test")
    store = FlakyS3("bucket", period=1_000_000)
    try:
        folder = f"s3://bucket/clips/?scheme=http&region=us-east-1&endpoint_override={store.url.removeprefix('http://')}"
        where, path = storage.filesystem(folder)
        with where.open_output_stream(f"{path.rstrip('/')}/a.mp4") as stream:
            stream.write(CONTENT)
        fetcher = Fetcher(UrlsConfig(storage=(folder,)), 15_000)
        assert _fetch(fetcher, "s3://bucket/clips/a.mp4") == CONTENT
        with pytest.raises(errors.UrlUnreachableError):
            _fetch(fetcher, "s3://bucket/clips/absent.mp4")
        with pytest.raises(errors.UrlRefusedError):
            _fetch(fetcher, "s3://bucket/other/a.mp4")
    finally:
        store.close()


def test_over_http_a_video_by_address_is_answered_as_one_that_was_sent(
    clips: Host, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    classifier = ScriptedClassifier()
    app = build_app(classifier, ServeConfig(), 4, 4, fetcher=_fetcher(clips))

    async def scenario() -> list[httpx.Response]:
        transport = httpx.ASGITransport(app, client=("127.0.0.1", 1))
        async with httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1") as http:
            url = _url(clips, "/good")
            classified = await http.post("/v1/classify", json={"url": url, "context": "door", "top_k": 1, "with_rationale": True})
            return [
                classified,
                await http.post("/v1/classify", files={"url": (None, url)}),
                await http.post("/v1/rationale", json={"video_id": classified.json()["video_id"]}),
                await http.post("/v1/rationale", json={"url": url}),
                await http.post("/v1/classify", json={"url": _url(clips, "/missing")}),
                await http.post("/v1/classify", json={"url": _url(clips, "/too-large")}),
            ]

    classified, by_form, again, why, missing, large = asyncio.run(scenario())
    assert classified.status_code == by_form.status_code == again.status_code == why.status_code == 200
    assert classified.json()["label"] == "door" and classified.json()["rationale"]["text"] and "fetch" in classified.json()["timing_s"]
    assert classifier.num_bytes == [len(CONTENT)] * 3
    assert (missing.status_code, missing.json()["code"]) == (422, "url_unreachable")
    assert (large.status_code, large.json()["code"]) == (413, "upload_too_large")
    assert list(tmp_path.iterdir()) == [], "nothing is left behind"
