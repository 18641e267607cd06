"""An S3 server on loopback (moto's), which can be made to fail: what object stores do now and then."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterable
from typing import Any

from moto.server import DomainDispatcherApplication, create_backend_app
from werkzeug.serving import make_server

BURST = 14
"""Requests in a row that fail: more than Arrow's client tries by itself."""

_SLOW_DOWN = b"<?xml version='1.0'?><Error><Code>SlowDown</Code><Message>Please reduce your request rate.</Message></Error>"

_DENIED = b"<?xml version='1.0'?><Error><Code>AccessDenied</Code><Message>Access Denied</Message></Error>"


class FlakyS3:
    """Answers on `url` until `close`; of every `period` requests `BURST` in a row fail with 503, the others take a moment."""

    def __init__(self, bucket: str, period: int = 80, delay_s: float = 0.02) -> None:
        logging.getLogger("werkzeug").setLevel(logging.ERROR)
        self._app = DomainDispatcherApplication(create_backend_app)
        self._period, self._delay_s = period, delay_s
        self._lock = threading.Lock()
        self._num_requests = 0
        self.num_failed = 0
        self.refused: str | None = None
        """What is in the names of those files that nobody may write from now on."""
        self.written: list[str] = []
        """The names of files, as bucket/key, in the order in which they were there."""
        self._server = make_server("127.0.0.1", 0, self._answer, threaded=True)
        self.url = f"http://127.0.0.1:{self._server.port}"
        self._thread = threading.Thread(target=self._server.serve_forever, daemon=True)
        self._thread.start()
        self._make(bucket)

    def fail_every(self, period: int) -> None:
        """From now on, in place of the period that it was made with."""
        with self._lock:
            self._period = period

    def close(self) -> None:
        self._server.shutdown()
        self._thread.join()

    def _make(self, bucket: str) -> None:
        import boto3

        keys = {"aws_access_key_id": "test", "aws_secret_access_key": "test", "region_name": "us-east-1"}
        boto3.client("s3", endpoint_url=self.url, **keys).create_bucket(Bucket=bucket)

    def _answer(self, environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        with self._lock:
            self._num_requests += 1
            fails = self._num_requests % self._period >= self._period - BURST
            self.num_failed += fails
        name, method = str(environ["PATH_INFO"]).lstrip("/"), environ["REQUEST_METHOD"]
        if method in ("PUT", "POST") and self.refused is not None and self.refused in name:
            start_response("403 Forbidden", [("Content-Type", "application/xml"), ("Content-Length", str(len(_DENIED)))])
            return [_DENIED]
        if fails:
            start_response("503 Slow Down", [("Content-Type", "application/xml"), ("Content-Length", str(len(_SLOW_DOWN)))])
            return [_SLOW_DOWN]
        time.sleep(self._delay_s)
        answer: Iterable[bytes] = self._app(environ, start_response)
        query = environ.get("QUERY_STRING", "")
        if (method == "PUT" and "partNumber" not in query) or (method == "POST" and "uploadId" in query):
            with self._lock:
                self.written.append(name)
        return answer

    @property
    def environment(self) -> dict[str, str]:
        """What a process needs to find it."""
        return {
            "AWS_ENDPOINT_URL": self.url,
            "AWS_ACCESS_KEY_ID": "test",
            "AWS_SECRET_ACCESS_KEY": "test",
            "AWS_DEFAULT_REGION": "us-east-1",
            "AWS_EC2_METADATA_DISABLED": "true",
        }
