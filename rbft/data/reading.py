"""What a reader makes of annotation files: the examples, and with them all that it left out and why, so that nothing goes unseen."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from rbft.records import Example

PRIVATE = "private"
"""Its URL is private, and there is no file."""
MISSING = "missing"
"""There is no file."""
IN_TWO_SPLITS = "in two splits"
"""The same id, or the same bytes, stands in a split that is held out more strictly."""
NOT_IN_SPLIT_FILE = "not in the split file"

REASONS = {
    PRIVATE: "the published URL is private and no file is there",
    MISSING: "no file is there",
    IN_TWO_SPLITS: "the same video is in a split that is held out more strictly, where it stays",
    NOT_IN_SPLIT_FILE: "the split file does not name it",
}

HELD_OUT_FIRST = ("test", "validation", "train")
"""Where a video stays that is in two splits: nothing tested on may have been learned from."""


@dataclass(frozen=True)
class LeftOut:
    """An annotated video that does not become a row of the manifest."""

    example: Example
    reason: str
    """One of `REASONS`."""


@dataclass(frozen=True)
class Reading:
    """The rows of some annotation files, each as an example or as left out."""

    examples: tuple[Example, ...]
    left_out: tuple[LeftOut, ...] = ()
    notes: tuple[str, ...] = ()
    """What a person should know about how the files were read, a sentence each."""

    def __len__(self) -> int:
        return len(self.examples) + len(self.left_out)

    def leaving_out(self, reasons: Mapping[str, str]) -> Reading:
        """This reading without the examples whose ids `reasons` holds (id -> one of `REASONS`)."""
        gone = tuple(LeftOut(example, reasons[example.id]) for example in self.examples if example.id in reasons)
        kept = tuple(example for example in self.examples if example.id not in reasons)
        return replace(self, examples=kept, left_out=(*self.left_out, *gone))
