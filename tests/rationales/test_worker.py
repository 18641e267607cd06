"""Videos to rationales, by a real engine: good ones become text, bad ones rows that say why."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

from rbft.config import GatesConfig, GenerationConfig
from rbft.engines.hf import HFEngine
from rbft.errors import EngineGoneError
from rbft.rationales.table import rationales_from_table, rationales_table
from rbft.rationales.worker import RationaleWorker
from rbft.records import Example, Rationale
from rbft.video.budget import FrameBudget
from rbft.video.pool import DecodePool
from tests.samples import SPEC, TASK

PAPER = GatesConfig()


def write_all(
    engine: Any,
    pool: DecodePool,
    examples: list[Example],
    temperature: float = 0.0,
    max_in_flight: int = 4,
    gates: GatesConfig = PAPER,
) -> list[Rationale]:
    async def write() -> list[Rationale]:
        generation = GenerationConfig(max_new_tokens=6, temperature=temperature)
        worker = RationaleWorker(
            *(engine, pool, TASK, SPEC, generation, gates),
            seed=5,
            provenance={"model": "tiny"},
            budget=FrameBudget(max_in_flight, 1 << 30),
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
    assert good.provenance.keys() == {"model", "num_frames", "fps", "decoder", "decode_s", "label_in_prompt", "generate_s"}
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


def test_a_rationale_that_fails_is_drawn_again_and_at_last_with_the_label_as_a_hint(
    engine: HFEngine, pool: DecodePool, videos: Path
) -> None:
    """The tiny model writes noise of six tokens, which is always cut off: every draw fails, and the first is kept."""
    resample = GatesConfig(profile="resample", num_redraws=2, redraw_temperature=5.0)
    labelled, unlabelled = Example("a", str(videos / "good.mp4"), label="normal"), Example("b", str(videos / "good.mp4"))
    once = write_all(engine, pool, [labelled])
    a, b = write_all(engine, pool, [labelled, unlabelled], gates=resample)
    assert (a.sample, a.text, a.provenance["label_in_prompt"]) == (0, once[0].text, False)
    draws = a.provenance["other_draws"]
    assert [(each["sample"], each["label_in_prompt"]) for each in draws] == [(1, False), (2, False), (3, True)]
    assert len({a.text, *(each["text"] for each in draws)}) == 4 and all("not_cut_off" in each["failed"] for each in draws)
    assert [each["label_in_prompt"] for each in b.provenance["other_draws"]] == [False, False]


def test_best_of_n_draws_n_and_each_is_the_same_whatever_else_is_drawn(engine: HFEngine, pool: DecodePool, videos: Path) -> None:
    example = Example("a", str(videos / "good.mp4"), label="normal")
    few, many = (
        write_all(engine, pool, [example], gates=GatesConfig(profile="best_of_n", num_samples=n, redraw_temperature=5.0))[0] for n in (2, 4)
    )
    texts = [{row.sample: row.text} | {each["sample"]: each["text"] for each in row.provenance["other_draws"]} for row in (few, many)]
    assert sorted(texts[1]) == [0, 1, 2, 3] and texts[0].items() <= texts[1].items()
