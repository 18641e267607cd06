from pathlib import Path

import pytest

from rbft.task import Dimension, Task

FIXTURES = Path(__file__).parent / "fixtures"


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
