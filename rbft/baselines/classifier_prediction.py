"""What a trained video classifier says about videos: rows to a folder, part by part, as `rbft.rows` has them."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator, Sequence

import torch

from rbft import rows
from rbft.baselines.classifier_spec import ClassifierSpec
from rbft.baselines.classifier_training import device_for
from rbft.baselines.video_classifier import VideoClassifier, load_trained
from rbft.data.clip_feed import ClipFeed
from rbft.errors import VideoError
from rbft.evaluation.predictions import predictions_table
from rbft.model_store import local_model
from rbft.records import Example, Prediction
from rbft.video.pool import DecodePool


def predict_videos(
    spec: ClassifierSpec,
    examples: Sequence[Example],
    folder: str,
    rows_per_part: int,
    is_stopped: Callable[[], bool] = lambda: False,
) -> None:
    """Predictions about `examples` by the finished model of `spec`, as parts of `folder`; a video that cannot be used is an error row.

    Ends before the next part when `is_stopped` says so.
    """
    if not examples:
        return
    classifier = load_trained(local_model(f"{spec.home}/final"))
    classifier.model.to(device_for(spec.training.num_gpus)).eval()
    num_threads = max(1, int(spec.training.num_cpus))
    with contextlib.ExitStack() as stack:
        pool = stack.enter_context(DecodePool(num_threads, spec.video.timeout_s, spec.video.memory_limit_bytes))
        feed: ClipFeed[None, torch.Tensor] = ClipFeed(pool, classifier.encoder.video_spec(spec.video.backend), num_threads)
        stack.enter_context(contextlib.closing(feed))
        encoded = feed.stream(
            ((example, None) for example in examples), lambda clip, _: classifier.encoder.views(clip, spec.classifier.num_crops)
        )
        for start in range(0, len(examples), rows_per_part):
            if is_stopped():
                return
            part = examples[start : start + rows_per_part]
            predictions: list[Prediction] = []
            for first in range(0, len(part), spec.classifier.micro_batch_size):
                batch = part[first : first + spec.classifier.micro_batch_size]
                predictions += _predict(spec, classifier, batch, [next(encoded) for _ in batch])
            rows.write_part(folder, predictions_table(predictions))


def _predict(
    spec: ClassifierSpec, classifier: VideoClassifier, examples: Sequence[Example], clips: Sequence[torch.Tensor | VideoError | None]
) -> list[Prediction]:
    """One prediction for each of `examples`; `clips` are the views of each."""
    usable = [clip for clip in clips if isinstance(clip, torch.Tensor)]
    logprobs: Iterator[list[float]] = iter(())
    if usable:
        device = device_for(spec.training.num_gpus)
        autocast = torch.autocast(device.type, torch.bfloat16, enabled=spec.classifier.precision == "bf16")
        views = torch.cat(usable).split(spec.classifier.micro_batch_size)
        with torch.inference_mode(), autocast:
            logits_VL = torch.cat([classifier.logits(some.to(device)) for some in views])
        # The mean of the views' probabilities, as both UniFormerV2 and InternVideo2 are tested.
        by_view = logits_VL.double().log_softmax(-1).unflatten(0, (len(usable), -1))
        logprobs = iter((by_view.logsumexp(1) - math.log(by_view.shape[1])).tolist())
    return [
        _failed(example, clip) if isinstance(clip, VideoError) else _prediction(example, spec.task.labels, next(logprobs))
        for example, clip in zip(examples, clips, strict=True)
    ]


def _prediction(example: Example, labels: Sequence[str], logprobs: Sequence[float]) -> Prediction:
    by_label = dict(zip(labels, logprobs, strict=True))
    probabilities = torch.tensor(logprobs, dtype=torch.float64).softmax(-1).tolist()
    return Prediction(
        id=example.id,
        label=example.label,
        predicted=max(by_label, key=lambda label: by_label[label]),
        probabilities=dict(zip(labels, probabilities, strict=True)),
        logprobs=by_label,
    )


def _failed(example: Example, error: VideoError) -> Prediction:
    return Prediction(example.id, example.label, None, error_code=error.code, error_message=str(error))
