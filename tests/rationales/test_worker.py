"""Videos to rationales, by a real engine: good ones become text, bad ones rows that say why."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

from rbft.config import GenerationConfig
from rbft.engines.hf import HFEngine
from rbft.errors import EngineGoneError
from rbft.rationales.table import rationales_from_table, rationales_table
from rbft.rationales.worker import RationaleWorker
from rbft.records import Example, Rationale
from rbft.video.budget import FrameBudget
from rbft.video.pool import DecodePool
from tests.samples import SPEC, TASK


def write_all(engine: Any, pool: DecodePool, examples: list[Example], temperature: float = 0.0, max_in_flight: int = 4) -> list[Rationale]:
    async def write() -> list[Rationale]:
        generation = GenerationConfig(max_new_tokens=6, temperature=temperature)
        worker = RationaleWorker(
            engine, pool, TASK, SPEC, generation, seed=5, provenance={"model": "tiny"}, budget=FrameBudget(max_in_flight, 1 << 30)
        )
        return list(await asyncio.gather(*(worker.write(example) for example in examples)))

    return asyncio.run(write())


def test_a_good_video_gives_text_and_bad_ones_their_codes(engine: HFEngine, pool: DecodePool, videos: Path) -> None:
    names = ("good", "missing", "corrupt")
    good, missing, corrupt = write_all(engine, pool, [Example(name, str(videos / f"{name}.mp4")) for name in names])
    assert (good.id, good.sample, good.error_code, good.finish_reason, good.num_tokens) == ("good", 0, None, "length", 6)
    assert good.text is not None and good.sections == TASK.parse_sections(good.text)
    assert good.num_prompt_tokens is not None and good.num_prompt_tokens > 100
    assert (missing.id, missing.error_code, missing.text) == ("missing", "video_missing", None)
    assert (corrupt.id, corrupt.error_code, corrupt.text) == ("corrupt", "video_decode", None)
    for row in (missing, corrupt):
        assert str(videos / f"{row.id}.mp4") in str(row.error_message)


def test_a_row_says_where_it_came_from(engine: HFEngine, pool: DecodePool, videos: Path) -> None:
    good, missing = write_all(engine, pool, [Example(name, str(videos / f"{name}.mp4")) for name in ("good", "missing")])
    assert good.provenance.keys() == {"model", "num_frames", "fps", "decoder", "decode_s", "generate_s"}
    assert (good.provenance["model"], good.provenance["num_frames"], good.provenance["fps"]) == ("tiny", 4, 1.0)
    assert good.provenance["decoder"] in ("decord", "pyav")
    assert missing.provenance == {"model": "tiny"}


def test_rows_survive_their_table(engine: HFEngine, pool: DecodePool, videos: Path) -> None:
    rows = write_all(engine, pool, [Example(name, str(videos / f"{name}.mp4")) for name in ("good", "missing")])
    assert rationales_from_table(rationales_table(rows)) == rows


def test_what_is_drawn_for_a_video_depends_on_its_id_and_not_on_what_else_is_asked(
    engine: HFEngine, pool: DecodePool, videos: Path
) -> None:
    examples = [Example(id_, str(videos / "good.mp4")) for id_ in ("a", "b", "c")]
    examples.append(Example("d", str(videos / "other.mp4")))
    texts = {row.id: row.text for row in write_all(engine, pool, examples, temperature=5.0)}
    others = {row.id: row.text for row in write_all(engine, pool, examples[::-1], temperature=5.0, max_in_flight=1)}
    alone = write_all(engine, pool, examples[1:2], temperature=5.0)
    assert others == texts
    assert alone[0].text == texts["b"]
    assert len({texts["a"], texts["b"], texts["c"]}) == 3


class GoneEngine(HFEngine):
    """The engine after its process has died."""

    def __init__(self) -> None:
        pass

    async def generate(self, *_: Any) -> Any:
        raise EngineGoneError("the engine died")


def test_an_engine_that_is_gone_is_not_a_bad_video(pool: DecodePool, videos: Path) -> None:
    with pytest.raises(EngineGoneError):
        write_all(GoneEngine(), pool, [Example("good", str(videos / "good.mp4"))])
