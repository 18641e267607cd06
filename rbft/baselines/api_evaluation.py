"""An API model asked about many videos: rows to a folder, part by part, as `rbft.rows` has them.

    <folder>/parts/      predictions, as every system's
    <folder>/answers/    what they were read from (`rbft.baselines.answers`), which stays

All of it happens in one process, as an account's limits hold for all requests together, and waiting for answers takes no machine.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import replace

from rbft import rows
from rbft.baselines.answer_cache import AnswerCache
from rbft.baselines.answers import APIAnswer, answers_table
from rbft.baselines.api_model import APIModel, APIScorer
from rbft.config import APIModelConfig, RunConfig
from rbft.evaluation.predictions import predictions_table
from rbft.records import Example, Prediction, VideoSpec
from rbft.video.budget import FrameBudget
from rbft.video.pool import DecodePool


def api_video_spec(config: RunConfig, model: APIModelConfig) -> VideoSpec:
    """The frames that `model` is shown."""
    spec = config.video.spec()
    most = min(spec.max_frames, model.max_frames or spec.max_frames)
    return replace(spec, max_frames=most, min_frames=min(spec.min_frames, most))


async def ask_about_videos(
    config: RunConfig, model: APIModelConfig, examples: Sequence[Example], folder: str, on_done: Callable[[int, int], None]
) -> None:
    """The rows of `examples` below `folder`; `on_done` is told the number of videos done, and how many of them are error rows.

    What is done when this ends early, by an error or by cancellation, is written. Raises `ConfigError` if the server would refuse every
    request, `JobError` if there is none, `OutOfQuotaError` if the account is empty, `ArtifactError` if nothing can be written.
    """
    video, spec = config.video, api_video_spec(config, model)
    budget = FrameBudget(2 * model.max_concurrency, config.engine.max_frame_bytes)
    asked = APIModel(model, AnswerCache(config.api_cache), config.evaluation.max_new_tokens)
    done: list[tuple[Prediction, APIAnswer]] = []

    def write() -> None:
        if done:
            # The predictions last: a video counts as done by them.
            rows.write_part(f"{folder}/answers", answers_table([answer for _, answer in done]))
            rows.write_part(folder, predictions_table([prediction for prediction, _ in done]))
            done.clear()

    with DecodePool(config.engine.decode_workers, video.timeout_s, video.memory_limit_bytes) as pool:
        scorer = APIScorer(model.name, asked, pool, config.task, spec, budget)
        tasks = [asyncio.create_task(scorer.predict(example)) for example in examples]
        try:
            for task in asyncio.as_completed(tasks):
                done.append(await task)
                on_done(1, int(done[-1][0].error_code is not None))
                if len(done) >= config.engine.rows_per_block:
                    await asyncio.to_thread(write)
        finally:
            for each in tasks:
                each.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            write()
            await asked.close()
