"""The task: what its file must hold, its prompts, and reading labels and sections back out of text."""

from __future__ import annotations

import pytest
from pydantic import ValidationError

from rbft.task import Dimension, Task

FIELDS = {
    "name": "home",
    "labels": ("normal", "abnormal"),
    "persona": "smart home security expert",
    "dimensions": (
        Dimension(heading="Subjects", describe="who appears"),
        Dimension(heading="Actions", describe="what they do"),
        Dimension(heading="Scenes", describe="where"),
    ),
    "question": "Is this video normal or abnormal?",
}
TASK = Task.model_validate({**FIELDS, "label_aliases": {"Vague Abnormal": "abnormal"}})


def task(**changes: object) -> Task:
    return Task.model_validate({**FIELDS, **changes})


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"labels": ("normal",)}, "at least 2"),
        ({"labels": ("Normal", "abnormal")}, "write 'normal'"),
        ({"labels": ("not  normal", "normal")}, "write 'not normal'"),
        ({"labels": ("normal", " ")}, "a label is empty"),
        ({"labels": ("normal", "normal")}, "labels must be distinct"),
        ({"label_aliases": {"odd": "strange"}}, "which are not labels"),
        ({"label_aliases": {"Normal": "abnormal"}}, "'Normal' stands for 'abnormal' and for 'normal'"),
        ({"label_aliases": {"odd": "abnormal", "ODD": "normal"}}, "'ODD' stands for"),
        ({"persona": " "}, "at least 1 character"),
        ({"question": ""}, "at least 1 character"),
        ({"dimensions": ()}, "at least 1 item"),
        ({"dimensions": [{"heading": "A", "describe": "x"}, {"heading": "a", "describe": "y"}]}, "headings of dimensions must be distinct"),
        ({"colour": "red"}, "Extra inputs are not permitted"),
    ],
)
def test_a_task_that_cannot_work_is_refused(changes: dict[str, object], expected: str) -> None:
    with pytest.raises(ValidationError, match=expected):
        task(**changes)


def test_the_rationale_prompt_has_the_persona_and_every_heading_in_order() -> None:
    prompt = TASK.rationale_prompt
    assert prompt.startswith("You are a smart home security expert.")
    positions = [prompt.index(f"\n{heading}: ") for heading in ("Subjects", "Actions", "Scenes")]
    assert positions == sorted(positions)
    assert task(persona="expert").rationale_prompt.startswith("You are an expert.")


def test_the_rationale_prompt_does_not_name_a_label() -> None:
    # Readings, 4: a rationale is written without knowing or hearing the answer.
    assert TASK.parse_label(TASK.rationale_prompt) is None
    assert "normal" not in TASK.rationale_prompt


def test_a_changed_copy_of_a_task_has_a_prompt_of_its_own() -> None:
    assert "security" in TASK.rationale_prompt
    assert TASK.model_copy(update={"persona": "gardener"}).rationale_prompt.startswith("You are a gardener.")


@pytest.mark.parametrize("context", [None, "Title: a dog"])
def test_the_video_comes_before_all_text_and_the_context_before_the_prompt(context: str | None) -> None:
    for messages, prompt in ((TASK.rationale_messages(context), TASK.rationale_prompt), (TASK.question_messages(context), TASK.question)):
        (message,) = messages
        video, text = message["content"]
        assert message["role"] == "user"
        assert video == {"type": "video"}
        assert text == {"type": "text", "text": prompt if context is None else f"Title: a dog\n\n{prompt}"}


@pytest.mark.parametrize(
    ("written", "label"),
    [
        ("normal", "normal"),
        (" Normal ", "normal"),
        ("Vague Abnormal", "abnormal"),
        ("vague  abnormal", "abnormal"),
        ("ABNORMAL", "abnormal"),
        ("strange", None),
        ("", None),
    ],
)
def test_an_annotation_is_read_without_regard_to_case_and_space(written: str, label: str | None) -> None:
    assert TASK.normalise_label(written) == label


@pytest.mark.parametrize(
    ("text", "label"),
    [
        ("abnormal", "abnormal"),
        ("Normal.", "normal"),
        ("**Abnormal**", "abnormal"),
        ("The answer is: abnormal!", "abnormal"),
        ("<abnormal>", "abnormal"),
        ("Normal. It is a normal day.", "normal"),
        ("No, it is abnormal.", "abnormal"),
        # Not a whole word.
        ("abnormality", None),
        ("abnormally", None),
        ("non-normal", None),
        ("paranormal", None),
        # None, or more than one.
        ("", None),
        ("I cannot tell.", None),
        ("normal or abnormal", None),
        ("not normal but abnormal", None),
        # Named only to deny it.
        ("not abnormal", None),
        ("This is not an abnormal video.", None),
        ("It isn't normal.", None),
        ("Nothing abnormal.", None),
        ("There is nothing here, neither normal", None),
    ],
)
def test_a_label_is_read_only_where_the_text_gives_exactly_one(text: str, label: str | None) -> None:
    assert TASK.parse_label(text) == label


@pytest.mark.parametrize(
    ("text", "label"),
    [
        ("not normal", "not normal"),
        ("Not\nnormal", "not normal"),
        ("normal", "normal"),
        ("normal, not normal", None),
        ("it is not not normal", None),
    ],
)
def test_where_one_label_is_part_of_another_the_longest_counts(text: str, label: str | None) -> None:
    assert task(labels=("normal", "not normal")).parse_label(text) == label


def test_labels_may_be_yes_and_no() -> None:
    yes_no = task(labels=("yes", "no"))
    assert [yes_no.parse_label(text) for text in ("Yes.", "No", "No, nothing", "yes or no", "nothing")] == ["yes", "no", "no", None, None]


def test_a_label_may_hold_signs_that_mean_something_to_regular_expressions() -> None:
    assert task(labels=("c++", "c (other)")).parse_label("It is C++.") == "c++"


SECTIONS = {"Subjects": "a dog", "Actions": "it runs\nand barks", "Scenes": "a garden"}


@pytest.mark.parametrize(
    "text",
    [
        "Subjects: a dog\nActions: it runs\nand barks\nScenes: a garden",
        "Sure, here it is.\n\nSubjects: a dog\n\nActions: it runs\nand barks\n\nScenes: a garden\n",
        "**Subjects**: a dog\n**Actions**: it runs\nand barks\n**Scenes**: a garden",
        "**Subjects:** a dog\n**Actions:** it runs\nand barks\n**Scenes:** a garden",
        "### Subjects\na dog\n\n### Actions\nit runs\nand barks\n\n### Scenes\na garden",
        "### **Subjects:**\na dog\n### **Actions:**\nit runs\nand barks\n### **Scenes:**\na garden",
        "1. Subjects: a dog\n2. Actions: it runs\nand barks\n3. Scenes: a garden",
        "1) **Subjects:** a dog\n2) **Actions:** it runs\nand barks\n3) **Scenes:** a garden",
        "(1) **Subjects**: a dog\n(2) **Actions**: it runs\nand barks\n(3) **Scenes**: a garden",
        "**1. Subjects:** a dog\n**2. Actions:** it runs\nand barks\n**3. Scenes:** a garden",
        "- Subjects: a dog\n- Actions: it runs\nand barks\n- Scenes: a garden",
        "* **Subjects:** a dog\n* **Actions:** it runs\nand barks\n* **Scenes:** a garden",
        "SUBJECTS: a dog\nactions: it runs\nand barks\n_Scenes_: a garden",
        "Subjects : a dog\nActions :it runs\nand barks\nScenes:a garden",
    ],
)
def test_sections_are_found_however_the_headings_are_marked(text: str) -> None:
    assert TASK.parse_sections(text) == SECTIONS


def test_only_the_headings_of_the_task_begin_a_section() -> None:
    text = "Subjects: a dog\n- Actions of the dog are fast\nThe Scenes: many\nVerdict: fine"
    assert TASK.parse_sections(text) == {"Subjects": "a dog\n- Actions of the dog are fast\nThe Scenes: many\nVerdict: fine"}


def test_text_without_headings_has_no_sections() -> None:
    assert TASK.parse_sections("A dog runs in a garden.") == {}
    assert TASK.parse_sections("") == {}


def test_sections_come_in_the_order_of_the_text_and_a_heading_that_comes_again_adds_to_its_section() -> None:
    sections = TASK.parse_sections("Actions: runs\nSubjects: dog\nActions: barks\nScenes:")
    assert list(sections.items()) == [("Actions", "runs\nbarks"), ("Subjects", "dog"), ("Scenes", "")]
