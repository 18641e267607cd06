"""Addresses that nobody should name, and what each is answered; and those that the configuration allows."""

import asyncio

import pytest
from pydantic import ValidationError

from rbft.config import ServeConfig, UrlsConfig
from rbft.errors import UrlRefusedError
from serve.links import MAX_CHARACTERS, StoredTarget, WebTarget, allowed_target
from tests.serve.scripted import ScriptedClassifier, client_of, request

CONFIG = UrlsConfig(
    hosts=("clips.example.org", "cdn.example.org:8443"),
    storage=("s3://bucket/clips/?region=eu-central-1", "gs://bucket/", "file:///srv/clips/"),
)

HOSTILE: dict[str, str] = {
    "http": "http://clips.example.org/a.mp4",
    "upper-case scheme": "HTTPS://clips.example.org/a.mp4",
    "no scheme": "clips.example.org/a.mp4",
    "scheme-relative": "//clips.example.org/a.mp4",
    "one slash": "https:/clips.example.org/a.mp4",
    "three slashes": "https:///clips.example.org/a.mp4",
    "nothing": "",
    "no host": "https://",
    "no host but a path": "https:///a.mp4",
    "ftp": "ftp://clips.example.org/a.mp4",
    "data": "data:video/mp4;base64,AAAA",
    "javascript": "javascript:alert(1)",
    "gopher": "gopher://clips.example.org:70/_GET",
    "dict": "dict://127.0.0.1:11211/stat",
    "jar": "jar:https://clips.example.org/a!/b",
    "a protocol of FFmpeg": "concat:https://clips.example.org/a.mp4|file:///etc/passwd",
    "crypto of FFmpeg": "crypto+file:///etc/passwd",
    "another host": "https://example.org/a.mp4",
    "a host below": "https://a.clips.example.org/a.mp4",
    "a host that ends alike": "https://evilclips.example.org/a.mp4",
    "a host that begins alike": "https://clips.example.org.evil.test/a.mp4",
    "a dot at the end": "https://clips.example.org./a.mp4",
    "another port": "https://clips.example.org:444/a.mp4",
    "port 80": "https://clips.example.org:80/a.mp4",
    "a host without its port": "https://cdn.example.org/a.mp4",
    "no port after the colon": "https://clips.example.org:/a.mp4",
    "a port that is none": "https://clips.example.org:http/a.mp4",
    "a port with zeros": "https://clips.example.org:0443/a.mp4",
    "a port too high": "https://clips.example.org:65979/a.mp4",
    "a negative port": "https://clips.example.org:-443/a.mp4",
    "a user": "https://user@clips.example.org/a.mp4",
    "a user and password": "https://user:secret@clips.example.org/a.mp4",
    "an empty user": "https://@clips.example.org/a.mp4",
    "the host as a user": "https://clips.example.org@evil.test/a.mp4",
    "the host as a password": "https://evil:clips.example.org@127.0.0.1/a.mp4",
    "two users": "https://a@clips.example.org@evil.test/a.mp4",
    "a backslash for a slash": "https://clips.example.org\\@evil.test/a.mp4",
    "a backslash before the path": "https://evil.test\\.clips.example.org/a.mp4",
    "a fragment before the user": "https://evil.test#@clips.example.org/a.mp4",
    "a query before the user": "https://evil.test?@clips.example.org/a.mp4",
    "a fragment": "https://clips.example.org/a.mp4#t=10",
    "a query without a path": "https://clips.example.org?a=b",
    "a blank": "https://clips.example.org/a b.mp4",
    "a blank before": " https://clips.example.org/a.mp4",
    "a line feed after": "https://clips.example.org/a.mp4\n",
    "a header of its own": "https://clips.example.org/a.mp4 HTTP/1.1\r\nHost: evil.test\r\n\r\n",
    "a tab in the host": "https://clips.exa\tmple.org/a.mp4",
    "a null byte": "https://clips.example.org\0.evil.test/a.mp4",
    "percent signs in the host": "https://clips%2Eexample.org/a.mp4",
    "full-width letters": "https://ｃlips.example.org/a.mp4",
    "a dot of another script": "https://clips。example。org/a.mp4",
    "a soft hyphen": "https://clips.exam\u00adple.org/a.mp4",
    "another script": "https://clips.ex\u0430mple.org/a.mp4",
    "this machine": "https://localhost/a.mp4",
    "this machine by number": "https://127.0.0.1/a.mp4",
    "by one number": "https://2130706433/a.mp4",
    "by a hexadecimal": "https://0x7f000001/a.mp4",
    "by an octal": "https://0177.0.0.1/a.mp4",
    "by half a number": "https://127.1/a.mp4",
    "IPv6": "https://[::1]/a.mp4",
    "IPv4 in IPv6": "https://[::ffff:127.0.0.1]/a.mp4",
    "IPv6 with a zone": "https://[fe80::1%25eth0]/a.mp4",
    "a cloud's metadata": "https://169.254.169.254/latest/meta-data/",
    "a cloud's metadata by name": "https://metadata.google.internal/computeMetadata/v1/",
    "a path of this machine": "/srv/clips/a.mp4",
    "a file elsewhere": "file:///etc/passwd",
    "steps up": "file:///srv/clips/../../etc/passwd",
    "steps up and down": "file:///srv/clips/a/../a.mp4",
    "steps up, escaped": "file:///srv/clips/%2e%2e/%2e%2e/etc/passwd",
    "the folder itself": "file:///srv/clips/",
    "a folder that begins alike": "file:///srv/clips-of-others/a.mp4",
    "a file of another host": "file://evil.test/srv/clips/a.mp4",
    "an empty step": "file:///srv/clips//etc/passwd",
    "a backslash in a file": "file:///srv/clips/..\\..\\etc\\passwd",
    "a null byte in a file": "file:///srv/clips/a.mp4\0.txt",
    "another bucket": "s3://other/clips/a.mp4",
    "another folder of the bucket": "s3://bucket/keys/a.mp4",
    "another endpoint": "s3://bucket/clips/a.mp4?endpoint_override=http://169.254.169.254",
    "credentials for a bucket": "s3://key:secret@bucket/clips/a.mp4",
    "a bucket with a fragment": "gs://bucket/a.mp4#b",
    "a bucket with a query": "gs://bucket/a.mp4?anonymous=true",
    "a storage of another kind": "hdfs://bucket/clips/a.mp4",
}


@pytest.mark.parametrize("name", HOSTILE)
def test_every_hostile_address_is_refused_unasked(name: str) -> None:
    with pytest.raises(UrlRefusedError) as refused:
        allowed_target(HOSTILE[name], CONFIG)
    assert "\n" not in str(refused.value) and "evil" not in str(refused.value)


def test_over_http_they_are_403_and_what_is_no_address_is_422() -> None:
    classifier = ScriptedClassifier()
    wrong: list[object] = ["x" * (MAX_CHARACTERS + 1), 7, ["https://clips.example.org/a.mp4"], {"url": "x"}, True]

    async def scenario() -> None:
        async with client_of(classifier, urls=CONFIG.model_dump()) as http:

            async def answer(route: str, url: object) -> tuple[int, str]:
                response = await http.post(route, json={"url": url})
                return response.status_code, response.json()["code"]

            for route in ("/v1/classify", "/v1/rationale"):
                for name, url in HOSTILE.items():
                    if url:
                        assert (name, await answer(route, url)) == (name, (403, "url_refused"))
                for each in wrong:
                    assert await answer(route, each) == (422, "request")

    asyncio.run(scenario())
    assert classifier.paths == []


def test_without_addresses_in_the_configuration_none_is_taken() -> None:
    assert ServeConfig().urls.is_on is False
    response = request(ScriptedClassifier(), "POST", "/v1/classify", json={"url": "https://clips.example.org/a.mp4"})
    assert (response.status_code, response.json()["code"]) == (403, "url_refused") and "serve.urls" in response.json()["detail"]
    assert request(ScriptedClassifier(), "GET", "/v1/task").json()["takes_urls"] is False
    assert request(ScriptedClassifier(), "GET", "/v1/task", {"urls": CONFIG.model_dump()}).json()["takes_urls"] is True


@pytest.mark.parametrize(
    ("url", "target"),
    [
        ("https://clips.example.org/a.mp4", WebTarget("clips.example.org", 443, "/a.mp4")),
        ("https://CLIPS.example.org:443/a/b%20c.mp4?x=1&y=@:/~", WebTarget("clips.example.org", 443, "/a/b%20c.mp4?x=1&y=@:/~")),
        ("https://clips.example.org", WebTarget("clips.example.org", 443, "/")),
        ("https://clips.example.org/../..//a.mp4", WebTarget("clips.example.org", 443, "/../..//a.mp4")),
        ("https://cdn.example.org:8443/a.mp4", WebTarget("cdn.example.org", 8443, "/a.mp4")),
        ("s3://bucket/clips/a/Tür 1.mp4", StoredTarget("s3://bucket/clips/?region=eu-central-1", "a/Tür 1.mp4")),
        ("gs://bucket/a.mp4", StoredTarget("gs://bucket/", "a.mp4")),
        ("file:///srv/clips/a@b:c.mp4", StoredTarget("file:///srv/clips/", "a@b:c.mp4")),
    ],
)
def test_what_the_configuration_allows_is_read(url: str, target: WebTarget | StoredTarget) -> None:
    assert allowed_target(url, CONFIG) == target


@pytest.mark.parametrize(
    "hosts",
    ["127.0.0.1", "0x7f.1", "localhost", "https://example.org", "*.example.org", "example.org/", "a@example.org", "[::1]", "ex ample.org"],
)
def test_the_configuration_names_hosts_and_nothing_else(hosts: str) -> None:
    with pytest.raises(ValidationError, match="name of a host"):
        UrlsConfig(hosts=(hosts,))


@pytest.mark.parametrize(
    "folder", ["s3://bucket", "s3://bucket/clips", "https://example.org/", "file://host/a/", "s3://key@bucket/", "/srv/"]
)
def test_the_configuration_names_folders_and_nothing_else(folder: str) -> None:
    with pytest.raises(ValidationError, match="with a slash at the end"):
        UrlsConfig(storage=(folder,))
