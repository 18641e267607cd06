"""Models that lie elsewhere: fetched once a node, checked, and used without a network from then on. A store is moto's, a hub one of the
test's own that speaks the hub's protocol; both over HTTP."""

from __future__ import annotations

import hashlib
import json
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from rbft import artifacts, storage
from rbft.config import ModelConfig
from rbft.errors import ModelError
from rbft.model_store import local_model, on_this_node
from tests.s3 import FlakyS3
from tests.tiny_models import make_tiny_model

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = make_tiny_model(tmp_path_factory.mktemp("model"))
    (folder / "evil.py").write_text("raise SystemExit")
    for pickle in ("pytorch_model.bin", "training_args.pt"):
        (folder / pickle).write_bytes(b"\x80\x04.")
    return folder


def names_in(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


def harmless(model: Path) -> set[str]:
    """What of `model` may be fetched."""
    return names_in(model) - {"evil.py", "pytorch_model.bin", "training_args.pt"}


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("RBFT_MODEL_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def s3(monkeypatch: pytest.MonkeyPatch) -> Iterator[FlakyS3]:
    server = FlakyS3("models", period=1_000_000, delay_s=0.0)
    for name, value in {
        "AWS_ENDPOINT_URL": server.url,
        "AWS_ACCESS_KEY_ID": "test",
        "AWS_SECRET_ACCESS_KEY": "test",
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_EC2_METADATA_DISABLED": "true",
    }.items():
        monkeypatch.setenv(name, value)
    yield server
    server.close()


def test_a_folder_that_is_here_is_used_where_it_lies(model: Path, cache: Path) -> None:
    assert local_model(str(model)) == model and local_model(f"file://{model}") == model and not cache.exists()
    config = ModelConfig(path=str(model))
    assert on_this_node(config) is config


@pytest.mark.usefixtures("cache")
def test_a_model_in_a_store_is_fetched_once_without_code_and_then_needs_no_store(model: Path, s3: FlakyS3) -> None:
    uri = "s3://models/tiny"
    storage.upload_folder(model, uri)
    found = local_model(uri)
    assert artifacts.model_fingerprint(found) == artifacts.model_fingerprint(model) and names_in(found) == harmless(model)
    s3.close()
    assert local_model(uri) == found and on_this_node(ModelConfig(path=uri)).path == str(found)


@pytest.mark.usefixtures("s3")
def test_many_processes_of_a_node_fetch_it_once(model: Path, cache: Path) -> None:
    storage.upload_folder(model, "s3://models/shared")
    program = "from rbft.model_store import local_model; print(local_model('s3://models/shared'))"
    started = [
        subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) for _ in range(3)
    ]
    ended = [process.communicate(timeout=120) for process in started]
    assert len({out for out, _ in ended}) == 1 and sum(err.count("fetching model=") for _, err in ended) == 1
    assert sorted(path.suffix for path in cache.iterdir()) == ["", ".lock"]


@pytest.mark.usefixtures("s3")
def test_what_was_fetched_in_part_by_who_was_killed_goes(model: Path, cache: Path) -> None:
    storage.upload_folder(model, "s3://models/half")
    folder = local_model("s3://models/half").parent
    folder.rename(folder.with_name(f"{folder.name}.0123abcd"))  # as it lies before its last file is there
    assert local_model("s3://models/half").parent == folder and not list(cache.glob("*.0123abcd"))


@pytest.mark.usefixtures("s3")
def test_a_model_other_than_the_pinned_one_is_refused_and_not_kept(model: Path, cache: Path) -> None:
    storage.upload_folder(model, "s3://models/tiny")
    right = artifacts.model_fingerprint(model)
    for path in ("s3://models/tiny", str(model)):
        with pytest.raises(ModelError, match=rf"its fingerprint is {right}, and model\.fingerprint says {'0' * 16}"):
            local_model(path, "0" * 16)
    assert not list(cache.glob("*/FETCHED.json"))
    assert local_model("s3://models/tiny", right).is_dir()
    with pytest.raises(ModelError, match="says 0000"):
        local_model("s3://models/tiny", "0" * 16)  # also of a copy that is here


@pytest.mark.usefixtures("s3")
def test_a_folder_of_a_run_whose_bytes_have_changed_on_the_way_is_refused(model: Path, cache: Path) -> None:
    artifacts.publish(model, "s3://models/final", "f" * 16, {})
    final = local_model("s3://models/final")
    assert artifacts.model_fingerprint(final) == "f" * 16 and names_in(final) == harmless(model) | {"COMPLETE.json"}
    artifacts.publish(model, "s3://models/other", "e" * 16, {})
    storage.write_bytes("s3://models/other/config.json", b"{}" + bytes((model / "config.json").stat().st_size - 2))
    with pytest.raises(ModelError, match=r"config\.json: its bytes have changed"):
        local_model("s3://models/other")
    assert len(list(cache.glob("*/FETCHED.json"))) == 1 and not list(cache.glob("*.*/model"))


@pytest.mark.usefixtures("s3", "cache")
def test_what_is_not_there_is_told() -> None:
    with pytest.raises(ModelError, match="s3://models/nowhere: no such folder"):
        local_model("s3://models/nowhere")
    with pytest.raises(ModelError, match="give the commit too"):
        local_model("hf://Qwen/Qwen2.5-VL-7B-Instruct@main")


class Hub:
    """Answers what `huggingface_hub` asks about one repository at one commit."""

    def __init__(self, model: Path) -> None:
        contents = {path.name: path.read_bytes() for path in model.iterdir() if path.is_file()}
        self.lies_about: set[str] = set()
        """Files of which it lists another hash."""
        self.num_requests = 0
        hub = self

        def entry(name: str) -> dict[str, object]:
            size = len(contents[name])
            found: dict[str, object] = {"type": "file", "path": name, "size": size, "oid": "b"}
            if name.endswith(".safetensors"):
                listed = hashlib.sha256(contents[name] + (b"x" if name in hub.lies_about else b"")).hexdigest()
                found["lfs"] = {"oid": listed, "size": size, "pointerSize": 1}
            return found

        class Handler(BaseHTTPRequestHandler):
            def do_HEAD(self) -> None:
                self.do_GET()

            def do_GET(self) -> None:
                hub.num_requests += 1
                path = self.path.partition("?")[0]
                if path == f"/api/models/org/tiny/revision/{COMMIT}":
                    self._send_json({"id": "org/tiny", "sha": COMMIT, "siblings": [{"rfilename": name} for name in contents]})
                elif path == f"/api/models/org/tiny/tree/{COMMIT}":
                    self._send_json([entry(name) for name in contents])
                elif path.startswith(f"/org/tiny/resolve/{COMMIT}/") and path.rpartition("/")[2] in contents:
                    data = contents[path.rpartition("/")[2]]
                    etag = hashlib.sha256(data).hexdigest()
                    self._send(data, {"ETag": f'"{etag}"', "X-Repo-Commit": COMMIT})
                else:
                    self.send_error(404)

            def _send_json(self, value: object) -> None:
                self._send(json.dumps(value).encode(), {"Content-Type": "application/json"})

            def _send(self, data: bytes, headers: dict[str, str]) -> None:
                self.send_response(200)
                for name, value in (headers | {"Content-Length": str(len(data))}).items():
                    self.send_header(name, value)
                self.end_headers()
                if self.command == "GET":
                    self.wfile.write(data)

            def log_message(self, *arguments: object) -> None:
                pass

        self._http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._http.server_port}"
        threading.Thread(target=self._http.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()

    def close(self) -> None:
        self._http.shutdown()
        self._http.server_close()


@pytest.fixture
def hub(model: Path) -> Iterator[Hub]:
    server = Hub(model)
    yield server
    server.close()


def fetch_from(url: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """In a process of its own: the hub's client reads its environment when it is imported. Between two tries it does not wait."""
    program = "import time; time.sleep = lambda _: None\nfrom rbft.cli import run; from rbft.model_store import local_model\n"
    program += f"raise SystemExit(run(lambda: print(local_model('hf://org/tiny@{COMMIT}'))))"
    settings = {"HF_ENDPOINT": url, "HF_HUB_OFFLINE": "0", "HF_HUB_DISABLE_XET": "1"} | environment
    return subprocess.run([sys.executable, "-c", program], env=os.environ | settings, capture_output=True, text=True, timeout=120)


@pytest.mark.usefixtures("cache")
def test_a_model_of_a_hub_is_fetched_at_its_commit_without_code_and_then_needs_no_hub(hub: Hub, model: Path) -> None:
    first = fetch_from(hub.url)
    assert first.returncode == 0, first.stderr
    folder = Path(first.stdout.strip())
    assert artifacts.model_fingerprint(folder) == artifacts.model_fingerprint(model) and names_in(folder) == harmless(model)
    asked = hub.num_requests
    assert fetch_from(hub.url, HF_HUB_OFFLINE="1").stdout == first.stdout and hub.num_requests == asked


def test_a_file_that_is_not_what_the_hub_lists_is_refused(hub: Hub, model: Path, cache: Path) -> None:
    hub.lies_about = {path.name for path in model.glob("*.safetensors")}
    refused = fetch_from(hub.url)
    assert "is not what the hub lists" in refused.stderr and not list(cache.glob("*/FETCHED.json"))


@pytest.mark.usefixtures("cache")
def test_a_hub_that_cannot_be_reached_is_told_in_a_line_without_a_traceback() -> None:
    with socket.socket() as nobody:  # bound and not listening: connections are refused
        nobody.bind(("127.0.0.1", 0))
        failed = fetch_from(f"http://127.0.0.1:{nobody.getsockname()[1]}")
    last = failed.stderr.strip().splitlines()[-1]
    assert failed.returncode == 2 and f"hf://org/tiny@{COMMIT}: cannot be fetched (" in last and "refused" in last
    assert "Traceback" not in failed.stderr
