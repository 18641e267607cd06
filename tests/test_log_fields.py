"""Fields of every line of log."""

import logging
from collections.abc import Iterator

import pytest
from ray._common.formatters import JSONFormatter

from rbft import log_fields


@pytest.fixture(autouse=True)
def factory(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(log_fields, "_FIELDS", {})
    before = logging.getLogRecordFactory()
    yield
    logging.setLogRecordFactory(before)


def test_every_record_has_the_fields_whoever_makes_it(caplog: pytest.LogCaptureFixture) -> None:
    log_fields.add_fields(run="mine", rank=1)
    log_fields.add_fields(step=1)
    log_fields.add_fields(step=2)
    logging.getLogger("anybody").warning("said %s", "it")
    assert {name: caplog.records[0].__dict__[name] for name in ("run", "rank", "step")} == {"run": "mine", "rank": 1, "step": 2}
    line = JSONFormatter().format(caplog.records[0])  # Ray's own, which RAY_LOGGING_CONFIG_ENCODING=JSON asks for
    assert '"message": "said it"' in line and '"run": "mine"' in line and '"rank": 1' in line


def test_a_field_takes_the_place_of_none_that_a_record_has(caplog: pytest.LogCaptureFixture) -> None:
    log_fields.add_fields(name="not the logger's", message="nor the message")
    logging.getLogger("mine").warning("said")
    assert caplog.records[0].name == "mine" and caplog.records[0].getMessage() == "said"
