"""What a replica answers another one. That they find each other is in `tests/integration/test_replicas.py`."""

from __future__ import annotations

import asyncio
from typing import Any

import numpy as np
import pytest

from rbft.api import RationaleAnswer, RationaleStart
from rbft.config import ServeConfig
from rbft.errors import ClipExpiredError
from rbft.records import Clip
from serve.clips import ClipCache, Seen, keeper_of
from serve.replicas import answered
from serve.service import Service
from tests.serve.scripted import ScriptedClassifier

SEEN = Seen(Clip(np.zeros((4, 28, 28, 3), np.uint8), (0.0, 1.0, 2.0, 3.0), 1.0, 4.0, 8.0, "pyav"), None, "normal")


class Alone:
    """Other replicas that must not be asked."""

    own_id = "here"

    async def ask(self, *_: Any) -> Any:
        raise AssertionError("the video is kept here")


def service_with_video(classifier: ScriptedClassifier) -> tuple[Service, str]:
    service = Service(classifier, ServeConfig(), 1, 1, others=Alone())
    video_id = service.clips.put("owner", SEEN)
    assert video_id is not None and keeper_of(video_id) == "here"
    return service, video_id


def unobserved(phase: str, seconds: float) -> None: ...


def test_it_gets_each_piece_and_at_last_the_whole_under_its_own_request_id() -> None:
    phases: list[str] = []

    async def scenario() -> list[Any]:
        service, video_id = service_with_video(ScriptedClassifier())
        asked = answered(service, lambda phase, _: phases.append(phase), "explain", "id-of-theirs", "owner", (video_id, None))
        return [each async for each in asked]

    *pieces, (has_ended, answer) = asyncio.run(scenario())
    assert has_ended and isinstance(answer, RationaleAnswer) and answer.text == "Scene: a room"
    assert not any(has_ended for has_ended, _ in pieces) and isinstance(pieces[0][1], RationaleStart)
    assert pieces[0][1].request_id == answer.request_id == "id-of-theirs"
    assert phases == ["queue", "engine"], "the body was received by whoever asks"


@pytest.mark.parametrize(("owner", "is_its"), [("owner", False), ("another", True)])
def test_what_is_gone_or_anothers_is_expired_there_too(owner: str, is_its: bool) -> None:
    async def scenario() -> None:
        service, video_id = service_with_video(ScriptedClassifier())
        async for _ in answered(service, unobserved, "show", "id", owner, (video_id if is_its else "here.never-was",)):
            raise AssertionError("there is no answer")

    with pytest.raises(ClipExpiredError):
        asyncio.run(scenario())


def test_when_nobody_waits_any_more_the_work_ends() -> None:
    classifier = ScriptedClassifier()

    async def scenario() -> None:
        async def never(number: int) -> None:
            await asyncio.sleep(3600 if number else 0)

        classifier.before_piece = never
        service, video_id = service_with_video(classifier)
        pieces = answered(service, unobserved, "explain", "id", "owner", (video_id, None))
        await anext(pieces)
        await pieces.aclose()

    asyncio.run(scenario())
    assert classifier.num_closed == 1


def test_an_id_says_which_cache_gave_it_and_without_a_name_none() -> None:
    async def ids() -> tuple[str | None, str | None]:
        return ClipCache(1 << 20, 60, keeper="abc").put("owner", SEEN), ClipCache(1 << 20, 60).put("owner", SEEN)

    named, nameless = asyncio.run(ids())
    assert keeper_of(named or "") == "abc" and keeper_of(nameless or "x.y") == ""
