"""Where the base model looks, on clips whose truth is known: it has to see the subject, and looks at it."""

from __future__ import annotations

import asyncio

import numpy as np
import pytest

from miniature.draw import FRAME_SIDE, render
from miniature.world import sample_world
from rbft.config import MaskingConfig, load_config
from rbft.evaluation.looking.attention import AttentionReader
from rbft.evaluation.looking.attention_map import AttentionMap
from rbft.evaluation.looking.boxes import Box, boxes_in_frames, boxes_of_others, covered
from rbft.evaluation.looking.focus import compare_enrichment, enrichment, focuses
from rbft.evaluation.looking.masking import Masker
from rbft.evaluation.looking.sources import SaliencyBoxes
from rbft.models.chat import ChatAdapter
from rbft.models.load import load_model
from rbft.records import Clip
from tests.conftest import REPOSITORY
from tests.evaluation.looking.clips import clip_of

Drawn = tuple[dict[str, Clip], dict[str, tuple[Box, ...]]]


@pytest.fixture(scope="module")
def drawn() -> Drawn:
    """Clips of a target world, and the true boxes of their subjects."""
    clips, boxes = {}, {}
    for each in sample_world(77, {"test": 24}):
        frames, corners = render(each.plan)
        shares = corners / FRAME_SIDE
        clips[each.plan.id] = clip_of(frames)
        boxes[each.plan.id] = tuple(Box(x0, y0, x1, y1, time_s=float(second)) for second, (x0, y0, x1, y1) in enumerate(shares.tolist()))
    return clips, boxes


@pytest.fixture(scope="module", params=["read", "read_gradient"])
def maps(request: pytest.FixtureRequest, drawn: Drawn) -> dict[str, AttentionMap]:
    """The base model's attention when it is about to say the label."""
    config = load_config(REPOSITORY / "configs/miniature.yaml")
    adapter = ChatAdapter(REPOSITORY / "miniature/model", config.video.spec())
    reader = AttentionReader(load_model(REPOSITORY / "miniature/model", "float32"), adapter)
    asked = [(clip, config.task.question_messages()) for clip in drawn[0].values()]
    found = reader.read(asked) if request.param == "read" else reader.read_gradient([(*each, "abnormal") for each in asked])
    return dict(zip(drawn[0], found, strict=True))


def test_the_base_model_looks_at_the_subject_more_than_chance(maps: dict[str, AttentionMap], drawn: Drawn) -> None:
    assert enrichment(focuses(maps, *drawn)).enrichment_ci95[0] > 1.5


def test_it_looks_at_this_clips_subject_and_not_only_where_subjects_usually_are(maps: dict[str, AttentionMap], drawn: Drawn) -> None:
    clips, boxes = drawn
    here, elsewhere = focuses(maps, clips, boxes), focuses(maps, clips, boxes_of_others(boxes))
    assert compare_enrichment(here, elsewhere).ci95[0] > 0.5


def test_saliency_masks_most_of_the_subjects_and_random_masks_less(drawn: Drawn) -> None:
    clips, boxes = drawn
    hidden: dict[str, list[float]] = {"object": [], "random": []}
    for id_, clip in clips.items():
        subject_THW = covered(boxes_in_frames(boxes[id_], clip), FRAME_SIDE, FRAME_SIDE)
        for kind, shares in hidden.items():
            masked = asyncio.run(Masker(SaliencyBoxes(), MaskingConfig(), kind).mask(id_, clip)).clip  # type: ignore[arg-type]
            shares.append(float((masked.frames_THWC != clip.frames_THWC).any(axis=-1)[subject_THW].mean()))
    assert np.mean(hidden["object"]) > np.mean(hidden["random"]) + 0.3
