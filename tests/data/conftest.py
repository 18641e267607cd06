from pathlib import Path

import pytest

from rbft.task import Dimension, Task

FIXTURES = Path(__file__).parent / "fixtures"

PUBLISHED = next((folder for parent in Path(__file__).resolve().parents if (folder := parent / "shared" / "data").is_dir()), None)
"""The annotation files as published, in a folder beside the checkout where there is one; they are not ours to copy."""

collect_ignore = [] if PUBLISHED else ["test_published.py"]


def make_task(*labels: str, **aliases: str) -> Task:
    return Task(
        name="doors",
        labels=labels,
        persona="watchman",
        dimensions=(Dimension(heading="Subjects", describe="who"),),
        question="?",
        label_aliases={alias.replace("_", " "): label for alias, label in aliases.items()},
    )


@pytest.fixture
def task() -> Task:
    return make_task("normal", "abnormal", Vague_Abnormal="abnormal")


@pytest.fixture
def hate_task() -> Task:
    return make_task("normal", "offensive", "hateful")


@pytest.fixture
def fixtures() -> Path:
    return FIXTURES
