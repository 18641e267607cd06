"""What API models answered, beside the predictions that were read from it: texts, tokens, what they cost."""

from __future__ import annotations

import datetime
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import pyarrow as pa

from rbft.config import APIModelConfig
from rbft.errors import ModelRefusedError


@dataclass(frozen=True)
class APIAnswer:
    """One request's answer: one row of `evaluation/<system>/<fingerprint>/answers/`. An error row has what is known of it."""

    id: str
    text: str | None = None
    finish_reason: str | None = None
    num_input_tokens: int | None = None
    """As the server counts them; None where it does not."""
    num_output_tokens: int | None = None
    """What is paid as output: a model's thoughts are among them."""
    served_model: str | None = None
    """The model that answered, as the server calls it."""
    answered_s: float | None = None
    """When, in seconds since 1970, by the server's clock."""
    is_from_cache: bool = False
    error_code: str | None = None


def answer_schema() -> pa.Schema:
    fields = [pa.field("id", pa.string(), nullable=False), pa.field("text", pa.string()), pa.field("finish_reason", pa.string())]
    fields += [pa.field("num_input_tokens", pa.int64()), pa.field("num_output_tokens", pa.int64())]
    fields += [pa.field("served_model", pa.string()), pa.field("answered_s", pa.float64())]
    fields += [pa.field("is_from_cache", pa.bool_(), nullable=False), pa.field("error_code", pa.string())]
    return pa.schema(fields, metadata={"rbft.schema": "api_answers", "rbft.schema_version": "1"})


def answers_table(answers: Sequence[APIAnswer]) -> pa.Table:
    return pa.Table.from_pylist([asdict(answer) for answer in answers], schema=answer_schema())


def usage(model: APIModelConfig, answers: pa.Table) -> dict[str, Any]:
    """What usage.json says of all `answers` (`answer_schema`): counts, tokens, US dollars at the prices of `model`; which
    models answered, and the first and the last day on which they did.

    `cost_usd` is what the answers cost when they were asked for, those from the cache too; `new_cost_usd` leaves those out. Both are None
    without prices.
    """
    rows = answers.to_pylist()
    codes = Counter(row["error_code"] for row in rows if row["error_code"] is not None)
    new = [row for row in rows if not row["is_from_cache"]]
    times_s = [row["answered_s"] for row in rows if row["answered_s"] is not None]
    return {
        "model": model.model,
        "url": model.url,
        "served_models": dict(Counter(row["served_model"] for row in rows if row["served_model"] is not None).most_common()),
        "answered": [_date(min(times_s)), _date(max(times_s))] if times_s else [],
        "num_videos": len(rows),
        "num_from_cache": len(rows) - len(new),
        "num_refusals": codes.pop(ModelRefusedError.code, 0),
        "errors": dict(codes.most_common()),
        "num_input_tokens": _sum(rows, "num_input_tokens"),
        "num_output_tokens": _sum(rows, "num_output_tokens"),
        "num_uncounted": sum(row["finish_reason"] is not None and row["num_input_tokens"] is None for row in rows),
        "cost_usd": _cost(model, rows),
        "new_cost_usd": _cost(model, new),
        "price_per_million_input_tokens": model.price_per_million_input_tokens,
        "price_per_million_output_tokens": model.price_per_million_output_tokens,
    }


def usage_line(name: str, found: dict[str, Any]) -> str:
    """One line for the terminal."""
    counts = f"{found['num_videos']} videos, {found['num_from_cache']} answers from the cache, {found['num_refusals']} refusals (wrong)"
    tokens = f"{found['num_input_tokens']:,} input and {found['num_output_tokens']:,} output tokens"
    if found["cost_usd"] is None:
        return f"{name}: {counts}; {tokens}; no prices given"
    return f"{name}: {counts}; {tokens}: {found['cost_usd']:.4f} USD, {found['new_cost_usd']:.4f} of it for those not from the cache"


def _date(seconds: float) -> str:
    return datetime.datetime.fromtimestamp(seconds, datetime.UTC).date().isoformat()


def _sum(rows: Sequence[dict[str, Any]], column: str) -> int:
    return sum(row[column] or 0 for row in rows)


def _cost(model: APIModelConfig, rows: Sequence[dict[str, Any]]) -> float | None:
    if model.price_per_million_input_tokens is None or model.price_per_million_output_tokens is None:
        return None
    cost = _sum(rows, "num_input_tokens") * model.price_per_million_input_tokens
    cost += _sum(rows, "num_output_tokens") * model.price_per_million_output_tokens
    return round(cost / 1e6, 6)
