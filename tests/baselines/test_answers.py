"""What API models' answers took, and how they are kept."""

from __future__ import annotations

from pathlib import Path

import pytest

from rbft.baselines.answer_cache import AnswerCache, answer_key
from rbft.baselines.answers import APIAnswer, answers_table, usage, usage_line
from rbft.config import APIModelConfig, OpenAIServerConfig
from rbft.engines.base import Sampling
from rbft.engines.openai_answer import read_completion
from rbft.engines.openai_request import chat_request
from tests.samples import TASK, random_clip

ANSWERS = [
    APIAnswer("a", "normal", "stop", 1000, 2),
    APIAnswer("b", "normal", "stop", 3000, 2, is_from_cache=True),
    APIAnswer("c", "I'm sorry.", "stop", 500, 6, error_code="model_refused"),
    APIAnswer("d", error_code="video_missing"),
    APIAnswer("e", error_code="server_error"),
    APIAnswer("f", "normal", "stop"),
]


def model(**settings: object) -> APIModelConfig:
    return APIModelConfig.model_validate({"name": "gpt-4o", **settings})


def test_tokens_and_costs_are_summed_and_refusals_are_no_errors() -> None:
    found = usage(model(price_per_million_input_tokens=2.0, price_per_million_output_tokens=50.0), answers_table(ANSWERS))
    assert (found["num_videos"], found["num_from_cache"], found["num_refusals"]) == (6, 1, 1)
    assert found["errors"] == {"video_missing": 1, "server_error": 1}
    assert (found["num_input_tokens"], found["num_output_tokens"], found["num_uncounted"]) == (4500, 10, 1)
    assert found["cost_usd"] == pytest.approx((4500 * 2 + 10 * 50) / 1e6)
    assert found["new_cost_usd"] == pytest.approx((1500 * 2 + 8 * 50) / 1e6)
    assert "1 refusals" in usage_line("gpt-4o", found) and "0.0095 USD" in usage_line("gpt-4o", found)


def test_without_prices_no_cost_is_made_up() -> None:
    found = usage(model(), answers_table(ANSWERS))
    assert found["cost_usd"] is None and found["num_input_tokens"] == 4500
    assert "no prices given" in usage_line("gpt-4o", found)


def test_thoughts_that_only_the_total_counts_are_paid_as_output() -> None:
    answer = '{"choices": [{"message": {"content": "normal"}}], "usage": {"prompt_tokens": 21, "completion_tokens": 2, "total_tokens": 83}}'
    assert read_completion(answer, "http://api").tokens.num_output_tokens == 62


def test_the_cache_gives_back_what_was_put_and_survives_rubbish(tmp_path: Path) -> None:
    cache, key = AnswerCache(str(tmp_path)), "0123456789abcdef"
    assert cache.get(key) is None
    kept = read_completion('{"choices": [{"message": {"content": "normal"}, "finish_reason": "stop"}], "usage": null}', "http://api")
    cache.put(key, kept)
    assert cache.get(key) == kept
    (file,) = (path for path in tmp_path.rglob("*") if path.is_file())  # no temporary file is left
    for rubbish in ("", '{"choices": []}', "[]", "\x00"):
        file.write_text(rubbish)
        assert cache.get(key) is None
    cache.put(key, kept)
    assert cache.get(key) == kept


def test_whatever_changes_the_question_changes_its_key() -> None:
    def key(url: str = "http://a/v1", seed: int = 0, text: str | None = None, limit: int = 16, logprobs: int = 0, **server: object) -> str:
        config = OpenAIServerConfig.model_validate({"url": url, "model": "m", **server})
        request = chat_request(config, random_clip(seed=seed), TASK.question_messages(text), Sampling(limit), top_logprobs=logprobs)
        return answer_key(config.url, request)

    others = [
        *(key("http://b/v1"), key(seed=1), key(text="A title."), key(limit=17), key(logprobs=5), key(model="n"), key(frames="video")),
        key(extra_body={"top_p": 0.5}),
    ]
    assert len({key(), *others}) == 1 + len(others)
    assert key() == key() == key(max_concurrency=3, max_retries=0, timeout_s=1, requests_per_minute=9, api_key_env="SOME_KEY")
