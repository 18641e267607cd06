"""Which samples of a worker's share of a global batch go through the model together. The gradient is that of the whole global batch
however they are grouped; only time and memory depend on it.
"""

from __future__ import annotations

from collections.abc import Sequence


def balanced_groups(lengths: Sequence[int], size: int) -> list[list[int]]:
    """The indices of `lengths` in groups of `size`, sums as equal as a greedy choice makes them: for packed rows.

    The longest first, each into the group that is shortest so far and has room. The group with the largest sum comes first, so that memory
    that does not suffice is seen at once; within a group the samples keep their order.
    """
    groups: list[list[int]] = [[] for _ in range(_num_groups(lengths, size))]
    sums = [0] * len(groups)
    for index in sorted(range(len(lengths)), key=lambda index: (-lengths[index], index)):
        chosen = min((number for number, group in enumerate(groups) if len(group) < size), key=lambda number: (sums[number], number))
        groups[chosen].append(index)
        sums[chosen] += lengths[index]
    order = sorted(range(len(groups)), key=lambda number: (-sums[number], number))
    return [sorted(groups[number]) for number in order]


def similar_groups(lengths: Sequence[int], size: int) -> list[list[int]]:
    """The indices of `lengths` in groups of `size`, samples of similar length together, the longest first: for padded rows."""
    _num_groups(lengths, size)
    order = sorted(range(len(lengths)), key=lambda index: (-lengths[index], index))
    return [sorted(order[start : start + size]) for start in range(0, len(order), size)]


def _num_groups(lengths: Sequence[int], size: int) -> int:
    if len(lengths) % size:
        raise ValueError(f"{len(lengths)} samples do not divide into groups of {size}")
    return len(lengths) // size
