"""The queue between callers and the engine's worker."""

from __future__ import annotations

import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from rbft.engines.batching import BatchQueue, Request
from rbft.errors import EngineGoneError
from rbft.models.chat import EncodedSample


def request_of(num_tokens: int) -> Request:
    ids_L = torch.zeros(num_tokens, dtype=torch.long)
    return Request(EncodedSample(ids_L, ids_L, ids_L, torch.zeros(0, 1176), torch.ones(3, dtype=torch.long), 1.0), {}, None)


def filled(queue: BatchQueue, *sizes: int) -> list[Request]:
    requests = [request_of(size) for size in sizes]
    for request in requests:
        queue.put(request)
    return requests


def test_a_batch_is_all_that_waits_in_the_order_it_came() -> None:
    queue = BatchQueue(8, 1000)
    requests = filled(queue, 5, 9, 3)
    assert queue.take() == requests


def test_a_batch_has_no_more_requests_and_no_more_padded_tokens_than_allowed() -> None:
    queue = BatchQueue(3, 100)
    a, b, c, d, e = filled(queue, 10, 10, 10, 10, 40)
    assert queue.take() == [a, b, c]
    (f,) = filled(queue, 30)
    assert queue.take() == [d, e]  # 2 x 40 fit, 3 x 40 do not
    assert queue.take() == [f]


def test_a_request_longer_than_a_batch_may_be_goes_alone() -> None:
    queue = BatchQueue(8, 100)
    a, b = filled(queue, 10, 500)
    assert queue.take() == [a]
    assert queue.take() == [b]


def test_what_was_cancelled_while_it_waited_is_left_out() -> None:
    queue = BatchQueue(8, 1000)
    a, b, c = filled(queue, 5, 5, 5)
    assert b.done.cancel()
    assert queue.take() == [a, c]


def test_a_full_queue_makes_callers_wait_until_the_worker_takes() -> None:
    queue = BatchQueue(8, 100)
    first = filled(queue, 100)
    late = request_of(7)
    with ThreadPoolExecutor(1) as threads:
        put = threads.submit(queue.put, late)
        time.sleep(0.05)
        assert not put.done()
        assert queue.take() == first
        put.result(timeout=10)
    assert queue.take() == [late]


def test_closing_fails_what_waits_in_the_queue_and_for_it_and_ends_the_worker() -> None:
    queue = BatchQueue(8, 100)
    (waiting,) = filled(queue, 100)
    with ThreadPoolExecutor(1) as threads:
        put = threads.submit(queue.put, request_of(7))
        queue.close()
        with pytest.raises(EngineGoneError):
            put.result(timeout=10)
    with pytest.raises(EngineGoneError):
        waiting.done.result(timeout=0)
    assert queue.take() == []
    with pytest.raises(EngineGoneError):
        queue.put(request_of(1))
    queue.close()


def test_a_worker_that_waits_is_woken_by_closing() -> None:
    queue = BatchQueue(8, 100)
    taken: list[list[Request]] = []
    worker = threading.Thread(target=lambda: taken.append(queue.take()))
    worker.start()
    queue.close()
    worker.join(timeout=10)
    assert taken == [[]]
