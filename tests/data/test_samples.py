"""Training items, and their way through real decoders to supervised tensors."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from rbft.data.samples import (
    SampleEncoder,
    TrainingItem,
    class_weights,
    classify_items,
    draw_items,
    human_rationales,
    label_subset,
    own_subset,
    rationale_items,
    replay_items,
    shuffled_rationales,
    weigh_replay,
)
from rbft.errors import DataError, VideoMissingError
from rbft.models.chat import IGNORE_INDEX, ChatAdapter
from rbft.records import Example
from rbft.systems import parse_system
from rbft.video.clip_cache import ClipCache
from rbft.video.pool import DecodePool
from tests.samples import SPEC, TASK, write_video
from tests.tiny_models import make_tiny_model


@pytest.fixture(scope="module")
def adapter(tmp_path_factory: pytest.TempPathFactory) -> ChatAdapter:
    return ChatAdapter(make_tiny_model(tmp_path_factory.mktemp("models") / "tiny"), SPEC)


@pytest.fixture(scope="module")
def examples(tmp_path_factory: pytest.TempPathFactory) -> list[Example]:
    folder = tmp_path_factory.mktemp("videos")
    video = str(write_video(folder / "a.mp4", seconds=4))
    return [
        Example("a", video, label="normal", context="Camera 3."),
        Example("b", video, label="abnormal", start_s=1.0),
        Example("c", video),
        Example("gone", str(folder / "gone.mp4"), label="normal"),
    ]


@pytest.fixture
def encoder(adapter: ChatAdapter) -> Iterator[SampleEncoder]:
    with DecodePool(2) as pool:
        encoder = SampleEncoder(adapter, pool, 2)
        yield encoder
        encoder.close()


def test_stage_1_asks_for_the_rationale_and_takes_unlabelled_videos(examples: list[Example]) -> None:
    items = rationale_items(TASK, examples, {"a": "Scene: a yard.", "c": "Scene: a hall."})
    assert [(item.example.id, item.answer) for item in items] == [("a", "Scene: a yard."), ("c", "Scene: a hall.")]
    assert [item.messages for item in items] == [TASK.rationale_messages("Camera 3."), TASK.rationale_messages()]


def test_table_3_answers_have_the_label_before_or_after_the_rationale(examples: list[Example]) -> None:
    texts = {"a": "Scene: a yard."}
    answers = [rationale_items(TASK, examples, texts, target)[0].answer for target in ("rationale", "label-first", "label-last")]
    assert answers == ["Scene: a yard.", "Classification: normal\nScene: a yard.", "Scene: a yard.\nClassification: normal"]
    with pytest.raises(DataError, match="video c has no label, which label-last wants"):
        rationale_items(TASK, examples, {"c": "Scene: a hall."}, "label-last")


@given(st.sets(st.text(min_size=1), max_size=40), st.integers(1, 99), st.integers(1, 99), st.integers(0, 5))
def test_own_subsets_have_their_share_and_lie_in_each_other(ids: set[str], percent: int, other: int, seed: int) -> None:
    few, many = (parse_system(f"rb-ft-mix-{share}").num_own(len(ids)) for share in sorted((percent, other)))
    examples = [Example(id_, id_) for id_ in sorted(ids)]
    small, large = own_subset(examples, few, seed), own_subset(examples, many, seed)
    assert small <= large <= ids and abs(len(large) - len(ids) * max(percent, other) / 100) <= 0.5
    assert own_subset(examples[::-1], many, seed) == large


def test_stage_2_asks_for_the_label_and_leaves_unlabelled_videos_out(examples: list[Example]) -> None:
    items = classify_items(TASK, examples)
    assert [(item.example.id, item.answer) for item in items] == [("a", "normal"), ("b", "abnormal"), ("gone", "normal")]
    assert items[0].messages == TASK.question_messages("Camera 3.")


def test_a_label_the_task_does_not_have_is_refused_with_its_video() -> None:
    with pytest.raises(DataError, match=r"video x: label 'odd' is not one of \['normal', 'abnormal'\]"):
        classify_items(TASK, [Example("x", "x.mp4", label="odd")])


def test_shuffled_rationales_are_the_same_texts_each_with_another_video() -> None:
    texts = {f"v{i}": f"text {i}" for i in range(50)}
    shuffled = shuffled_rationales(texts, seed=3)
    assert sorted(shuffled.values()) == sorted(texts.values()) and shuffled.keys() == texts.keys()
    assert all(shuffled[id_] != texts[id_] for id_ in texts)
    assert shuffled == shuffled_rationales(dict(reversed(texts.items())), seed=3) != shuffled_rationales(texts, seed=4)


def test_human_rationales_are_the_manifests_and_a_missing_one_is_named() -> None:
    written = Example("a", "a.mp4", human_text="A dog.")
    assert human_rationales([written]) == {"a": "A dog."}
    with pytest.raises(DataError, match=r"1 training videos have no human_text .*, e.g. b"):
        human_rationales([written, Example("b", "b.mp4")])


def test_a_label_subset_is_drawn_by_seed_keeps_the_order_and_lies_in_every_larger_one() -> None:
    examples = [Example(f"v{i}", "v.mp4", label="normal" if i % 5 else None) for i in range(100)]
    subsets = [[example.id for example in label_subset(examples, count, seed=1)] for count in (8, 32, 80)]
    assert [len(subset) for subset in subsets] == [8, 32, 80]
    assert set(subsets[0]) < set(subsets[1]) < set(subsets[2]) == {example.id for example in examples if example.label}
    assert all(subset == sorted(subset, key=lambda id_: int(id_[1:])) for subset in subsets)
    assert {example.id for example in label_subset(examples, 8, seed=2)} != set(subsets[0])
    with pytest.raises(DataError, match="81 labels are asked for and 80 training videos have one"):
        label_subset(examples, 81, seed=1)


@pytest.mark.parametrize("stage", ["rationale", "classify"])
def test_only_the_answer_and_its_end_are_supervised(
    stage: str, adapter: ChatAdapter, examples: list[Example], encoder: SampleEncoder
) -> None:
    rationales = {"a": "Scene: a yard.\nMotion: a dog runs.", "b": "Scene: dark."}
    items = rationale_items(TASK, examples[:2], rationales) if stage == "rationale" else classify_items(TASK, examples[:2])
    prompt = TASK.rationale_prompt if stage == "rationale" else TASK.question
    for item, sample in zip(items, encoder.stream(items), strict=True):
        tokens = sample.input_ids_L.tolist()
        answer = [*adapter.tokenizer(item.answer)["input_ids"], adapter.end_token_id]
        assert tokens[-len(answer) :] == answer
        assert sample.labels_L.tolist() == [IGNORE_INDEX] * (len(tokens) - len(answer)) + answer
        masked = adapter.tokenizer.decode(tokens[: -len(answer)])
        assert masked.count("<|video_pad|>") == int(sample.mm_token_type_ids_L.sum()) // 2 == int(sample.grid_thw.prod()) // 4
        assert masked.endswith(f"{prompt}<|im_end|>\n<|im_start|>assistant\n")


def test_what_one_encoder_decoded_another_takes_from_the_disk_with_the_same_tensors(
    adapter: ChatAdapter, examples: list[Example], encoder: SampleEncoder, tmp_path: Path
) -> None:
    items = classify_items(TASK, examples[:2])
    plain = list(encoder.stream(items))
    with DecodePool(1) as pool, contextlib.closing(SampleEncoder(adapter, pool, 1, ClipCache(tmp_path, 1 << 20))) as first:
        filled = list(first.stream(items))
    # Its pool is closed by now: whatever it decoded would be an error.
    with contextlib.closing(SampleEncoder(adapter, pool, 1, ClipCache(tmp_path, 1 << 20))) as second:
        found = list(second.stream(items))
    for samples in (filled, found):
        for one, other in zip(samples, plain, strict=True):
            assert all(torch.equal(torch.as_tensor(value), torch.as_tensor(vars(other)[name])) for name, value in vars(one).items())


def test_samples_come_in_the_order_of_their_items(adapter: ChatAdapter, examples: list[Example], encoder: SampleEncoder) -> None:
    items = [TrainingItem(examples[0], TASK.question_messages(), "n" * length) for length in (5, 1, 4, 2, 3, 9, 7, 8, 6, 10, 12, 11)]
    assert [sample.num_supervised_tokens - 1 for sample in encoder.stream(items)] == [len(item.answer) for item in items]


def test_fillers_and_bad_videos_become_samples_without_supervised_tokens(examples: list[Example], encoder: SampleEncoder) -> None:
    first, *items = classify_items(TASK, examples)
    samples = list(encoder.stream([None, first, *items]))
    assert [sample.num_supervised_tokens > 0 for sample in samples] == [False, True, True, False]
    for empty in (samples[0], samples[-1]):
        assert (empty.labels_L == IGNORE_INDEX).all()
        assert empty.grid_thw.tolist() == [1, 2, 2]
    assert list(encoder.errors) == ["gone"]
    assert isinstance(encoder.errors["gone"], VideoMissingError)


def plain_items(*answers: str) -> list[TrainingItem]:
    return [TrainingItem(Example(f"v{i}", "v.mp4", label=answer), TASK.question_messages(), answer) for i, answer in enumerate(answers)]


@given(st.lists(st.sampled_from(["normal", "abnormal", "odd"]), min_size=1, max_size=50))
def test_class_weights_make_every_class_count_the_same_and_are_one_in_the_mean(labels: list[str]) -> None:
    items = class_weights(plain_items(*labels))
    assert [item.answer for item in items] == labels
    by_class = {label: sum(item.weight for item in items if item.answer == label) for label in set(labels)}
    assert list(by_class.values()) == pytest.approx([len(labels) / len(by_class)] * len(by_class))


def test_replay_is_its_share_of_the_samples_and_goes_round_where_there_are_too_few() -> None:
    rationales = plain_items(*(f"rationale {i}" for i in range(10)))
    few = replay_items(rationales, num_labels=27, share=0.1, seed=0)
    assert len(few) == 3 and len({item.answer for item in few}) == 3
    assert few == replay_items(rationales[::-1], 27, 0.1, 0) != replay_items(rationales, 27, 0.1, 1)
    many = replay_items(rationales, num_labels=15, share=0.5, seed=0)
    assert many[:3] == few and len(many) == 15 and {item.answer for item in many} == {item.answer for item in rationales}
    assert replay_items(rationales, 27, 0.0, 0) == []


def test_a_replayed_rationale_weighs_as_much_as_a_label_however_long_it_is(adapter: ChatAdapter) -> None:
    labels = class_weights(plain_items("normal", "normal", "normal", "abnormal"))
    rationales = plain_items("a dog", "a dog that runs across the yard and back")
    items = weigh_replay([*labels, *rationales], 2, adapter)
    assert items[:4] == labels
    total = [item.weight * len(adapter.answer_ids(item.answer)) for item in items]
    assert total[4:] == pytest.approx([sum(total[:4]) / 4] * 2)
    assert weigh_replay(labels, 0, adapter) == labels


def test_a_draw_depends_on_seed_and_purpose_and_not_on_the_order() -> None:
    items = plain_items(*["normal"] * 20)
    drawn = draw_items(items, 5, "validation", 0)
    assert len(drawn) == 5 and drawn == draw_items(items[::-1], 5, "validation", 0) == draw_items(items, 9, "validation", 0)[:5]
    assert drawn != draw_items(items, 5, "probe", 0) and drawn != draw_items(items, 5, "validation", 1)
    assert set(map(id, draw_items(items, 99, "validation", 0))) == set(map(id, items))
