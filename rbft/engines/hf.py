"""Plain transformers as an `Engine`: dynamic batches, quick to start; the peer that vLLM's numbers are held against.

    callers -> encoder threads (clip and prompt to tensors) -> queue -> one worker thread (the only one at the model) -> answers

The worker takes all that waits as its next batch, so that batches grow with the load and a lone request waits for nobody; meanwhile the
encoders prepare those after it.

Shape legend: B prompts, N pairs of prompt and label, L prompt tokens, A answer tokens, H hidden size, V vocabulary.
"""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import AsyncGenerator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import torch

from rbft.config import ModelConfig
from rbft.engines.base import Answer, Generated, Sampling
from rbft.engines.batching import BatchQueue, Request
from rbft.errors import EngineError, EngineGoneError
from rbft.models.attention import use_segments
from rbft.models.chat import ChatAdapter
from rbft.models.last_layer import narrow_last_layer
from rbft.models.load import load_model
from rbft.models.patches import multiply_patches
from rbft.records import Clip, VideoSpec
from rbft.task import Message

MAX_BATCH_TOKENS = 32_768
"""As long as one request may be (`EngineConfig.max_model_len`), so batches need not much more memory than the longest one does."""

_NUM_ENCODERS = min(4, os.cpu_count() or 1)
"""Beside the worker, which waits for the GPU most of the time."""


class HFEngine:
    """One model on the first GPU, or on the CPU. See `rbft.engines.base.Engine`.

    What a request is answered depends on nothing else in its batch but by rounding (1e-5 in float32); drawn text not even by that, as it
    is drawn alone.
    """

    def __init__(self, model: ModelConfig, spec: VideoSpec, device: str | None = None, max_batch_size: int = 64) -> None:
        self.adapter = ChatAdapter(model.path, spec)
        self._device = device or ("cuda" if torch.cuda.is_available() else "cpu")
        self._model: Any = load_model(model.path, model.dtype, model.attention).to(self._device).eval()
        use_segments(self._model, packed=False)
        multiply_patches(self._model)
        narrow_last_layer(self._model)
        self._queue = BatchQueue(max_batch_size, MAX_BATCH_TOKENS)
        self._encoders = ThreadPoolExecutor(_NUM_ENCODERS, thread_name_prefix="rbft-encode")
        self._gone: str | None = None
        """Why nothing is served any more."""
        self._worker = threading.Thread(target=self._work, name="rbft-hf", daemon=True)
        self._worker.start()

    async def generate(self, clip: Clip, messages: Sequence[Message], sampling: Sampling) -> Generated:
        request = await self._ask(clip, messages, (), sampling)
        assert request.generated is not None
        return request.generated

    async def stream(self, clip: Clip, messages: Sequence[Message], sampling: Sampling) -> AsyncGenerator[Generated, None]:
        """In one piece: its batches are written to their end before anything is read."""
        yield await self.generate(clip, messages, sampling)

    async def score(self, clip: Clip, messages: Sequence[Message], labels: Sequence[str]) -> dict[str, float]:
        return (await self._ask(clip, messages, labels, None)).logprobs

    async def answer(self, clip: Clip, messages: Sequence[Message], labels: Sequence[str], max_new_tokens: int) -> Answer:
        request = await self._ask(clip, messages, labels, Sampling(max_new_tokens))
        assert request.generated is not None
        return Answer(request.logprobs, request.generated)

    async def check_health(self) -> None:
        if self._gone is not None:
            raise EngineGoneError(self._gone)

    def close(self) -> None:
        """End the threads, after the batch under way; what still waits gets `EngineGoneError`. Idempotent."""
        self._end("the engine has been closed")
        self._encoders.shutdown()
        self._worker.join()
        self._model = None

    async def _ask(self, clip: Clip, messages: Sequence[Message], labels: Sequence[str], sampling: Sampling | None) -> Request:
        """The request, answered."""
        await self.check_health()
        encoded = self._encoders.submit(self._admit, clip, messages, labels, sampling)
        request = await asyncio.wrap_future(encoded)
        await asyncio.wrap_future(request.done)
        return request

    def _admit(self, clip: Clip, messages: Sequence[Message], labels: Sequence[str], sampling: Sampling | None) -> Request:
        """The request, encoded and in the queue."""
        if self._gone is not None:
            raise EngineGoneError(self._gone)
        answers = {label: self.adapter.answer_ids(label) for label in labels}
        request = Request(self.adapter.encode(clip, messages), answers, sampling)
        self._queue.put(request)
        return request

    def _end(self, reason: str) -> None:
        self._gone = self._gone or reason
        self._queue.close()

    @torch.inference_mode()
    def _work(self) -> None:
        try:
            while batch := self._queue.take():
                self._serve(batch)
        finally:  # Whatever ended it, nobody may go on waiting for it.
            self._end("the engine's worker thread has ended")

    def _serve(self, batch: Sequence[Request]) -> None:
        """Answer every request of `batch`. If that fails, ask each alone, so that only the one at fault fails."""
        try:
            self._run(batch)
        except torch.AcceleratorError as error:  # The CUDA context is lost, and every later request would fail.
            reason = f"the engine died: {_one_line(error)}"
            self._end(reason)
            for request in batch:
                request.done.set_exception(EngineGoneError(reason))
        except Exception as error:  # noqa: BLE001  # whatever it was, the callers must hear of it, and the others go on
            if len(batch) > 1:
                for request in batch:
                    self._serve([request])
            else:
                failure = EngineError(f"the engine failed on the request: {_one_line(error)}")
                failure.__cause__ = error
                batch[0].done.set_exception(failure)
        else:
            for request in batch:
                request.done.set_result(None)

    def _run(self, batch: Sequence[Request]) -> None:
        if to_score := [request for request in batch if request.answers]:
            self._score(to_score)
        to_write = [(request, request.sampling) for request in batch if request.sampling is not None and request.generated is None]
        if greedy := [(request, sampling) for request, sampling in to_write if sampling.temperature == 0]:
            longest = max(sampling.max_new_tokens for _, sampling in greedy)
            self._write([request for request, _ in greedy], Sampling(longest))
        for request, sampling in to_write:
            if sampling.temperature > 0:  # Alone: random numbers are drawn for a batch as a whole.
                self._write([request], sampling)

    def _score(self, requests: Sequence[Request]) -> None:
        """Teacher-forced: each prompt once, then each label on top of its prompt's keys and values."""
        pairs = [(row, label, tokens) for row, request in enumerate(requests) for label, tokens in request.answers.items()]
        rows_N = torch.tensor([row for row, _, _ in pairs], device=self._device)
        lengths = [len(tokens) for _, _, tokens in pairs]
        pad = torch.nn.utils.rnn.pad_sequence
        answers_NA = pad([torch.tensor(tokens) for _, _, tokens in pairs], batch_first=True).to(self._device)
        supervised_NA = pad([torch.ones(length, dtype=torch.bool) for length in lengths], batch_first=True).to(self._device)

        inputs = self._inputs(requests)
        mask_BL = inputs["attention_mask"]
        last_N = torch.arange(1, len(requests) + 1, device=self._device) * mask_BL.shape[1] - 1  # prompts are padded on the left
        prompts = self._model.model(**inputs, predicting_N=last_N, use_cache=True)
        cache = prompts.past_key_values
        cache.batch_select_indices(rows_N)
        next_position_B = mask_BL.sum(dim=1) + self._model.model.rope_deltas[:, 0]
        positions_NA = next_position_B[rows_N, None] + torch.arange(answers_NA.shape[1] - 1, device=self._device)
        hidden_NAH = self._model.model(
            input_ids=answers_NA[:, :-1],
            attention_mask=torch.cat([mask_BL[rows_N], supervised_NA[:, 1:].long()], dim=1),
            position_ids=positions_NA.expand(3, -1, -1),
            past_key_values=cache,
            use_cache=True,
        ).last_hidden_state
        hidden_NAH = torch.cat([prompts.last_hidden_state[0, rows_N, None], hidden_NAH], dim=1)

        # As generation does: float32 before anything is compared.
        logits_SV = self._model.lm_head(hidden_NAH[supervised_NA]).float()
        tokens_S = answers_NA[supervised_NA]
        is_greedy_S = (logits_SV.argmax(dim=-1) == tokens_S).cpu()
        logprobs_S = torch.log_softmax(logits_SV, dim=-1).gather(1, tokens_S[:, None])[:, 0].double().cpu()
        for (row, label, tokens), logprobs, is_greedy in zip(pairs, logprobs_S.split(lengths), is_greedy_S.split(lengths), strict=True):
            request = requests[row]
            request.logprobs[label] = float(logprobs.sum())
            if request.sampling is not None and request.sampling.temperature == 0:
                # What greedy generation would write, as far as it would be let write, needs no generation.
                if bool(is_greedy[: request.sampling.max_new_tokens].all()):
                    request.generated = self._read(request, request.sampling, tokens)

    def _write(self, requests: Sequence[Request], sampling: Sampling) -> None:
        """Texts by one `generate`; each is cut where its own request ends."""
        inputs = self._inputs(requests)
        torch.manual_seed(sampling.seed)
        # Temperature alone shapes the distribution, as in vLLM: Qwen's own generation_config would cut it to the top token.
        shape = {"temperature": sampling.temperature, "top_k": 0, "top_p": 1.0}
        draw = {"do_sample": True, **shape} if sampling.temperature > 0 else {"do_sample": False}
        output_BL = self._model.generate(
            **inputs,
            max_new_tokens=sampling.max_new_tokens,
            eos_token_id=self.adapter.end_token_id,
            pad_token_id=self.adapter.pad_token_id,
            repetition_penalty=1.0,
            **draw,
        )
        texts_BL = output_BL[:, inputs["input_ids"].shape[1] :].tolist()
        for request, tokens in zip(requests, texts_BL, strict=True):
            request.generated = self._read(request, request.sampling or sampling, tokens)

    def _read(self, request: Request, sampling: Sampling, tokens: Sequence[int]) -> Generated:
        """What `request` gets of the generated `tokens`: up to the end token or its own `max_new_tokens`."""
        end = self.adapter.end_token_id
        kept = list(tokens[: sampling.max_new_tokens])
        if end in kept:
            kept = kept[: kept.index(end) + 1]
        finish_reason = "stop" if kept[-1:] == [end] else "length"
        return Generated(self.adapter.decode(kept), request.num_prompt_tokens, len(kept), finish_reason)

    def _inputs(self, requests: Sequence[Request]) -> dict[str, torch.Tensor]:
        return self.adapter.prompt_inputs([request.prompt for request in requests], self._model)


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split())[:300] or type(error).__name__
