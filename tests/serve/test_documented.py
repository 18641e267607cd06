"""What the documents say about the service is what it does."""

import re
from pathlib import Path

from rbft import errors
from rbft.config import ServeConfig
from serve.app import build_app
from serve.page import PAGE_PATHS
from serve.problems import status_of
from tests.serve.scripted import ScriptedClassifier


def test_the_table_of_refusals_has_each_code_under_its_status_and_none_is_missing(repository: Path) -> None:
    text = (repository / "docs" / "serving.md").read_text()
    rows = re.findall(r"^\| (\d{3}(?:, \d{3})*) \| ([^|]*) \|", text, re.MULTILINE)
    documented = {(status, code) for statuses, codes in rows for status in statuses.split(", ") for code in re.findall(r"`(\w+)`", codes)}
    # A request may be wrong in several ways; without keys a stranger is refused otherwise than with.
    looser = {errors.RequestError.code, errors.UnauthorizedError.code}
    expected = {(str(int(status_of(error("")))), error.code) for error in _refusals()}
    assert {pair for pair in documented if pair[1] not in looser} == {pair for pair in expected if pair[1] not in looser}
    assert {code for _, code in documented} >= looser


def _refusals() -> list[type[errors.RBFTError]]:
    """What a request can be refused with: errors about one video, of the engine that serves, and of the service."""
    never = {errors.VideoError, errors.VideoMissingError, errors.VideoTrimError}  # an upload is there, and is not trimmed
    about_videos = [error for error in errors.VideoError.__subclasses__() if error not in never]
    return [*about_videos, errors.DecoderStartError, errors.EngineError, errors.EngineGoneError, *errors.ServiceError.__subclasses__()]


def test_every_route_and_every_setting_that_the_documents_name_exists(repository: Path) -> None:
    text = "".join((repository / path).read_text() for path in ("docs/serving.md", "docs/threat-model.md", "SECURITY.md", "README.md"))
    named = set(re.findall(r"[` ]serve\.([a-z_]+)", text))
    assert len(named) > 8 and named <= set(ServeConfig.model_fields)
    app = build_app(ScriptedClassifier(), ServeConfig(), 1, 1)
    routes = {route.path for route in app.routes}  # type: ignore[attr-defined]
    described = set(re.findall(r"^\| `(?:GET|POST) (/[a-z0-9/{}]*)` \|", text, re.MULTILINE))
    assert described == routes - {"/openapi.json"} - (PAGE_PATHS - {"/"})


def test_every_test_that_the_threat_model_names_exists(repository: Path) -> None:
    text = (repository / "docs" / "threat-model.md").read_text()
    for name in re.findall(r"`((?:tests/[a-z/]*)?test_\w+\.py)`", text):
        assert (repository / name).exists() or (repository / "tests" / "serve" / name).exists(), name
    for name in re.findall(r"`((?:serve|rbft)/[\w/]+\.py)`", text):
        assert (repository / name).exists(), name
