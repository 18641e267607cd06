"""The service is what its own /openapi.json says: Schemathesis makes requests from it, good and bad, and holds the responses against it."""

from __future__ import annotations

import schemathesis
from hypothesis import HealthCheck, Phase, settings
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    negative_data_rejection,
    response_headers_conformance,
    response_schema_conformance,
    status_code_conformance,
    unsupported_method,
)
from starlette.types import Receive, Scope, Send

from rbft.config import ServeConfig
from serve.app import build_app
from tests.serve.scripted import ScriptedClassifier
from tests.serve.test_attention import ScriptedLooker

app = build_app(ScriptedClassifier(), ServeConfig(), 4, 4, looker=ScriptedLooker())


async def from_this_machine(scope: Scope, receive: Receive, send: Send) -> None:
    """The service, asked from where it answers without keys."""
    headers = [(name, value) for name, value in scope.get("headers", []) if name != b"host"]
    await app({**scope, "client": ("127.0.0.1", 1), "headers": [*headers, (b"host", b"127.0.0.1")]}, receive, send)


schema = schemathesis.openapi.from_asgi("/openapi.json", from_this_machine)
CHECKS = [
    not_a_server_error,
    status_code_conformance,
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
    negative_data_rejection,
    unsupported_method,
]


@schema.parametrize()
@settings(
    max_examples=40, derandomize=True, deadline=None, suppress_health_check=list(HealthCheck), phases=[Phase.explicit, Phase.generate]
)
def test_every_response_is_one_that_the_description_has(case: schemathesis.Case) -> None:
    case.call_and_validate(checks=CHECKS)
