"""The order of items, which decides what every step sees."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from rbft.training.order import global_batches, worker_share


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
