"""A small server on loopback that speaks OpenAI's protocol and misbehaves as it is told."""

from __future__ import annotations

import contextlib
import json
import threading
import time
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from rbft.config import OpenAIServerConfig

Reply = tuple[int, dict[str, str], Any]
"""Status, headers, and a body: text as it is, anything else as JSON."""


def completion(content: str | None = "A dog.", finish_reason: str | None = "stop", **message: object) -> Reply:
    choice = {"index": 0, "finish_reason": finish_reason, "message": {"role": "assistant", "content": content, **message}}
    usage = {"prompt_tokens": 21, "completion_tokens": 4}
    return 200, {}, {"object": "chat.completion", "model": "m-2026-01-31", "created": 1767225600, "choices": [choice], "usage": usage}


def failure(status: int, message: str = "no", **headers: str) -> Reply:
    return status, headers, {"error": {"message": message, "type": "error"}}


class Server:
    """Answers the request that tries it out well, and those about videos with `replies`, in turn, the last again and again."""

    def __init__(self) -> None:
        self.replies: list[Reply] = [completion()]
        self.trial: Reply = completion("Hi")
        self.trials: list[dict[str, Any]] = []
        self.models: Reply = (200, {}, {"object": "list", "data": []})
        self.on_request: Callable[[], object] = lambda: None
        """Called while a request about a video is held."""
        self.asked: list[dict[str, Any]] = []
        """The bodies of the requests about videos."""
        self.arrived_s: list[float] = []
        self.keys: set[str | None] = set()
        self._lock = threading.Lock()
        server = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                assert self.path == "/v1/models"
                self._send(server.models)

            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                server.keys.add(self.headers["Authorization"])
                if self.path != "/v1/chat/completions":
                    self._send(failure(404))
                elif body["messages"][0]["content"] == "Hello":
                    server.trials.append(body)
                    self._send(server.trial)
                else:
                    reply = server._next(body)
                    server.on_request()
                    self._send(reply)

            def _send(self, reply: Reply) -> None:
                status, headers, content = reply
                data = (content if isinstance(content, str) else json.dumps(content)).encode()
                self.send_response(status)
                for name, value in {"Content-Type": "application/json", "Content-Length": str(len(data)), **headers}.items():
                    self.send_header(name.replace("_", "-"), value)
                self.end_headers()
                self.wfile.write(data)

            def handle(self) -> None:
                with contextlib.suppress(ConnectionError):  # a client that did not wait for the answer
                    super().handle()

            def log_message(self, *arguments: object) -> None:
                pass

        self._http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._http.server_port}/v1"
        self._thread = threading.Thread(target=self._http.serve_forever, kwargs={"poll_interval": 0.01})
        self._thread.start()

    def _next(self, body: dict[str, Any]) -> Reply:
        with self._lock:
            self.arrived_s.append(time.monotonic())
            self.asked.append(body)
            return self.replies[min(len(self.asked), len(self.replies)) - 1]

    def config(self, **settings: Any) -> OpenAIServerConfig:
        return OpenAIServerConfig(**{"url": self.url, "model": "teacher", "max_retries": 2, "timeout_s": 30.0} | settings)

    def close(self) -> None:
        self._http.shutdown()
        self._thread.join()
        self._http.server_close()
