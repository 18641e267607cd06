"""Models behind OpenAI-compatible servers as systems of an evaluation, and what is known of those that the paper compares with."""

from __future__ import annotations

from typing import Any

from pydantic import Field, model_validator

from rbft.config.engine import OpenAIServerConfig

_OPENAI = {"url": "https://api.openai.com/v1", "api_key_env": "OPENAI_API_KEY", "top_logprobs": 20}
_GEMINI = {
    "url": "https://generativelanguage.googleapis.com/v1beta/openai",
    "api_key_env": "GEMINI_API_KEY",
    # They think before they answer, and the limit holds for both together: with 16 tokens there is no answer at all.
    "max_new_tokens": 8192,
}
API_MODELS: dict[str, dict[str, Any]] = {
    "gpt-4.1": {**_OPENAI, "model": "gpt-4.1"},
    "gpt-4o": {**_OPENAI, "model": "gpt-4o"},
    "gpt-4o-mini": {**_OPENAI, "model": "gpt-4o-mini"},
    "gemini-2.5-flash": {**_GEMINI, "model": "gemini-2.5-flash"},
    "gemini-2.5-pro": {**_GEMINI, "model": "gemini-2.5-pro"},
}
"""Name -> what an entry of that name has unless it says otherwise. Without prices, which change: who asks gives those of the day."""


class APIModelConfig(OpenAIServerConfig):
    """One model that is asked. In the file also its bare name, if that is one of `API_MODELS`."""

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")
    """What reports and folders call it; one of `API_MODELS` fills in what is not given here."""
    max_concurrency: int = Field(8, gt=0)
    """Requests under way at a time."""
    max_new_tokens: int | None = Field(None, gt=0)
    """Of its answer, thoughts included; None is `evaluation.max_new_tokens`."""
    max_frames: int | None = Field(None, ge=2, multiple_of=2)
    """Frames a request, at most, evenly spaced; None is `video.max_frames`. Frames are most of what a request costs."""
    top_logprobs: int = Field(0, ge=0, le=20)
    """Likely tokens asked for with each token of the answer, which give the probabilities of labels; 0 for servers that have none."""
    price_per_million_input_tokens: float | None = Field(None, ge=0)
    """In US dollars, as its provider has it on the day; None: costs are not summed."""
    price_per_million_output_tokens: float | None = Field(None, ge=0)

    @model_validator(mode="before")
    @classmethod
    def _known_models_are_filled_in(cls, given: Any) -> Any:
        if isinstance(given, str):
            given = {"name": given}
        if not isinstance(given, dict):
            return given
        name = given.get("name")
        if name not in API_MODELS and "url" not in given:
            raise ValueError(f"{name!r} is none of the models we know ({', '.join(API_MODELS)}); give its url and model")
        return API_MODELS.get(str(name), {}) | given

    @model_validator(mode="after")
    def _fits_together(self) -> APIModelConfig:
        if (self.price_per_million_input_tokens is None) != (self.price_per_million_output_tokens is None):
            raise ValueError("give both prices, of input and of output tokens, or none")
        if {"logprobs", "top_logprobs"} & set(self.extra_body):
            raise ValueError("extra_body must not hold logprobs; set top_logprobs beside it")
        return self
