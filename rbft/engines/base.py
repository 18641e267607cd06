"""What an inference engine does: write text about a clip, and score labels for it."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from rbft.records import Clip
from rbft.task import Message


@dataclass(frozen=True)
class Sampling:
    """How text is drawn. Temperature 0 is greedy; then `seed` has no effect."""

    max_new_tokens: int
    temperature: float = 0.0
    seed: int = 0


@dataclass(frozen=True)
class Generated:
    """Text an engine wrote."""

    text: str
    num_prompt_tokens: int
    num_tokens: int
    """Generated tokens, the end token among them."""
    finish_reason: str
    """"stop" (the end token) or "length" (`max_new_tokens`); "" while it is being written."""
    num_cached_tokens: int = field(default=0, compare=False)
    """Prompt tokens that the engine had in its prefix cache, as far as it tells; says nothing of what was written."""


@dataclass(frozen=True)
class Answer:
    """What evaluation asks for: how likely each label is, and what the model says by itself."""

    logprobs: dict[str, float]
    """As `Engine.score` gives them."""
    generated: Generated
    """As `Engine.generate` gives it, greedily."""


class Engine(Protocol):
    """One loaded model. Methods are coroutines that may run concurrently; they raise `EngineError` for one request's failure and
    `EngineGoneError` when the engine is dead and its owner must exit."""

    async def generate(self, clip: Clip, messages: Sequence[Message], sampling: Sampling) -> Generated:
        """Text that continues the conversation about `clip`."""
        ...

    async def score(self, clip: Clip, messages: Sequence[Message], labels: Sequence[str]) -> dict[str, float]:
        """Label -> log-likelihood (natural) of its tokens and the end token as the answer; unnormalised over labels."""
        ...

    async def answer(self, clip: Clip, messages: Sequence[Message], labels: Sequence[str], max_new_tokens: int) -> Answer:
        """`score` and greedy `generate` at once, which may cost less than one after the other."""
        ...

    async def check_health(self) -> None:
        """Raise `EngineGoneError` if the engine cannot serve any more."""
        ...

    def close(self) -> None:
        """Free what the engine holds; idempotent."""
        ...


class StreamingEngine(Engine, Protocol):
    """An engine whose text can be read while it is written."""

    def stream(self, clip: Clip, messages: Sequence[Message], sampling: Sampling) -> AsyncGenerator[Generated, None]:
        """The text so far, again and again, each a continuation of the one before; the last is what `generate` gives.

        Closing the generator, or cancelling who waits for it, ends the request in the engine.
        """
        ...
