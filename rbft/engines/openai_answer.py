"""What we read of an OpenAI-compatible server's answer. The openai package's own types hold what they were sent, whatever that was;
servers differ."""

from __future__ import annotations

from pydantic import BaseModel, Field, ValidationError

from rbft.errors import ModelServerError


class TopLogprob(BaseModel):
    token: str
    logprob: float


class TokenLogprob(TopLogprob):
    """One token of the answer, and the likeliest at its place, as a rule with it among them."""

    top_logprobs: list[TopLogprob] = Field(default_factory=list)


class Logprobs(BaseModel):
    content: list[TokenLogprob] | None = None


class Message(BaseModel):
    content: str | None = None
    refusal: str | None = None


class Choice(BaseModel):
    message: Message
    finish_reason: str | None = None
    logprobs: Logprobs | None = None


class Usage(BaseModel):
    prompt_tokens: int = 0
    completion_tokens: int = 0
    total_tokens: int = 0

    @property
    def num_output_tokens(self) -> int:
        """What is paid as output. Gemini's `completion_tokens` leave out its thoughts, which are in the total."""
        return max(self.completion_tokens, self.total_tokens - self.prompt_tokens)


class Completion(BaseModel):
    choices: list[Choice] = Field(min_length=1)
    usage: Usage | None = None
    model: str | None = None
    """The one that answered, by its full name: what an alias stands for changes."""
    created: float | None = None
    """When, in seconds since 1970."""

    @property
    def text(self) -> str:
        """What was said, be it an answer or why there is none; "" if nothing was."""
        message = self.choices[0].message
        return (message.content or message.refusal or "").strip()

    @property
    def finish_reason(self) -> str | None:
        return self.choices[0].finish_reason

    @property
    def tokens(self) -> Usage:
        """Zeros where the server counts none."""
        return self.usage or Usage()

    @property
    def is_whole(self) -> bool:
        """Whether it holds a text that came to its end, or to the limit of tokens."""
        return bool(self.text) and self.finish_reason in ("stop", "length")

    @property
    def shortcoming(self) -> str:
        """What it is where it is not whole."""
        what = "no text" if not self.text else "a text that is not whole"
        return f"{what} (finish_reason {self.finish_reason}, {self.tokens.completion_tokens} tokens)"


def read_completion(answer: str, url: str) -> Completion:
    """The completion that the server at `url` sent; raises `ModelServerError` if it is none."""
    try:
        return Completion.model_validate_json(answer)
    except ValidationError:
        raise ModelServerError(f"{url}: the answer is no chat completion: {' '.join(answer.split())[:300]}") from None
