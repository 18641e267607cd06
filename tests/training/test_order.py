"""The order of items, which decides what every step sees."""

from __future__ import annotations

from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from rbft.training.order import balanced_epoch, global_batches, worker_share


@given(st.integers(1, 40), st.integers(1, 4), st.integers(1, 4), st.integers(1, 3), st.integers(0, 9))
def test_every_epoch_sees_every_item_once_on_some_worker(num_items: int, workers: int, per_worker: int, epochs: int, seed: int) -> None:
    batches = global_batches(num_items, workers * per_worker, epochs, seed)
    per_epoch = len(batches) // epochs
    for epoch in range(epochs):
        shares = [worker_share(batch, rank, workers) for batch in batches[epoch * per_epoch :][:per_epoch] for rank in range(workers)]
        assert all(len(share) == per_worker for share in shares)
        seen = [index for share in shares for index in share if index is not None]
        assert sorted(seen) == list(range(num_items))
    assert {len(batch) for batch in batches} == {workers * per_worker}


def test_the_order_depends_on_seed_and_epoch() -> None:
    orders = {tuple(batches[epoch]) for seed in (0, 1) for batches in [global_batches(16, 16, 2, seed)] for epoch in (0, 1)}
    assert len(orders) == 4


def test_the_fill_of_a_last_batch_is_spread_over_workers() -> None:
    (batch,) = global_batches(2, 4, 1, 0)
    assert [worker_share(batch, rank, 2).count(None) for rank in (0, 1)] == [1, 1]


@given(st.lists(st.sampled_from(["rare", "common", "usual", None]), min_size=1, max_size=40), st.integers(0, 9), st.integers(0, 3))
def test_in_a_balanced_epoch_every_class_stands_equally_often(classes: list[str | None], seed: int, epoch: int) -> None:
    chosen = balanced_epoch(classes, seed, epoch)
    counts = Counter(classes[index] for index in chosen)
    by_class = Counter(name for name in classes if name is not None)
    most = max(by_class.values(), default=0)
    assert all(counts[name] == most for name in by_class) and counts[None] == classes.count(None)
    # Every item of a class as often as the others, but for one.
    times = Counter(chosen)
    for name in by_class:
        of_class = [times[index] for index, each in enumerate(classes) if each == name]
        assert min(of_class) >= 1 and max(of_class) - min(of_class) <= 1
    assert chosen == balanced_epoch(classes, seed, epoch)


def test_which_items_of_a_rare_class_stand_once_more_changes_from_epoch_to_epoch() -> None:
    classes = ["rare"] * 5 + ["common"] * 8
    assert len({tuple(sorted(Counter(balanced_epoch(classes, 0, epoch)).items())) for epoch in range(8)}) > 1


def test_batches_of_balanced_epochs_are_shuffled_and_filled_up() -> None:
    classes = ["rare", "common", "common", "common", None]
    batches = global_batches(5, 4, 2, 0, classes)
    assert [len(batch) for batch in batches] == [4, 4, 4, 4]
    for epoch in (batches[:2], batches[2:]):
        seen = Counter(index for batch in epoch for index in batch)
        assert seen == {0: 3, 1: 1, 2: 1, 3: 1, 4: 1, None: 1}
    assert batches[:2] != batches[2:]


def test_without_classes_the_order_is_what_it_always_was() -> None:
    assert global_batches(5, 4, 1, 7) == [[4, 1, 3, 0], [2, None, None, None]]
