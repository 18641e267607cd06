"""Examples of answers for the OpenAPI description. Made of the bodies themselves, so that they cannot be out of date."""

from __future__ import annotations

from rbft.api import (
    AttentionAnswer,
    BatchAnswer,
    BatchItem,
    CalibrationFacts,
    ClassifyAnswer,
    Frame,
    FramesAnswer,
    Heatmap,
    Limits,
    ModelVersion,
    Problem,
    RationaleAnswer,
    RationaleStart,
    Sampled,
    TaskAnswer,
    TextPiece,
    VideoFacts,
)

_MODEL = ModelVersion(name="smarthome/rb-ft", fingerprint="4bc9a8677f0567bb")
_WRITER = ModelVersion(name="smarthome/rb-ft/stage-1", fingerprint="9e0c1b7d52f3a864")
_VIDEO = VideoFacts(num_frames=12, fps=1.0, duration_s=12.04)
_CALIBRATION = CalibrationFacts(temperature=1.42, threshold=0.46, num_clips=205)
_TEXT = "Subjects: a person in a dark coat\nActions: tries the door handle, looks around, leaves"

EXPLAINED = RationaleAnswer(
    text=_TEXT,
    sections={"Subjects": "a person in a dark coat", "Actions": "tries the door handle, looks around, leaves"},
    gates={
        "not_empty": True,
        "not_cut_off": True,
        "not_repeating": True,
        "no_refusal": True,
        "has_sections": False,
        "names_no_label": True,
    },
    finish_reason="stop",
    num_tokens=24,
    num_prompt_tokens=1183,
    num_cached_tokens=0,
    request_id="8c1f6f0d5e0b4a7e",
    video_id="mX3l0kQ2n8sT5vB9wZ1cR4yH",
    model=_WRITER,
    video=_VIDEO,
    timing_s={"receive": 0.02, "queue": 0.0, "engine": 0.71, "total": 0.74},
)

CLASSIFIED = ClassifyAnswer(
    label="abnormal",
    probabilities={"abnormal": 0.87, "normal": 0.13},
    threshold=0.46,
    calibration=_CALIBRATION,
    request_id="5d02b6a1c93f4e11",
    video_id="mX3l0kQ2n8sT5vB9wZ1cR4yH",
    video_expires_s=300.0,
    model=_MODEL,
    video=_VIDEO,
    timing_s={"receive": 0.02, "queue": 0.0, "decode": 0.31, "engine": 0.12, "total": 0.46},
)

BATCH = BatchAnswer(
    items=(
        BatchItem(status=200, answer=CLASSIFIED),
        BatchItem(
            status=422,
            problem=Problem(title="Unprocessable Entity", status=422, detail="the upload: its end is missing", code="video_decode"),
        ),
    ),
    request_id="5d02b6a1c93f4e11",
    timing_s={"receive": 0.05, "total": 0.49},
)

_JPEG = "data:image/jpeg;base64,/9j/4AAQSkZJRgABAQAAAQABAAD/…"

SHOWN = FramesAnswer(
    frames=tuple(Frame(time_s=time_s, uri=_JPEG, width=280, height=240) for time_s in (0.0, 1.0)),
    request_id="c07f5a1e93d84b62",
    video_id="mX3l0kQ2n8sT5vB9wZ1cR4yH",
    timing_s={"receive": 0.0, "queue": 0.0, "encode": 0.01, "total": 0.01},
)

LOOKED = AttentionAnswer(
    heatmaps=tuple(Heatmap(time_s=time_s, uri=_JPEG, width=280, height=240, share=share) for time_s, share in ((0.0, 0.41), (1.0, 0.59))),
    video_share=0.23,
    request_id="7ad83b1c0f5942e6",
    video_id="mX3l0kQ2n8sT5vB9wZ1cR4yH",
    model=_MODEL,
    video=VideoFacts(num_frames=2, fps=1.0, duration_s=2.0),
    timing_s={"receive": 0.0, "queue": 0.0, "attention": 0.35, "total": 0.35},
)

_EVENTS = [
    ("start", RationaleStart(request_id=EXPLAINED.request_id, video_id=EXPLAINED.video_id, model=_WRITER, video=_VIDEO)),
    ("text", TextPiece(text="Subjects: a person")),
    ("text", TextPiece(text=" in a dark coat")),
    ("end", EXPLAINED),
]
STREAM = "".join(f"event: {name}\ndata: {data.model_dump_json()}\n\n" for name, data in _EVENTS)

METRICS = "".join(
    f"{line}\n"
    for line in (
        "# HELP rbft_serve_requests_total Requests answered or refused",
        "# TYPE rbft_serve_requests_total counter",
        'rbft_serve_requests_total{method="POST",replica="u1x9q2ab",route="/v1/classify",status="200"} 1183.0',
        'rbft_serve_queue_waiting{queue="classifying",replica="u1x9q2ab"} 0.0',
        'rbft_serve_model_info{fingerprint="4bc9a8677f0567bb",name="smarthome/rb-ft",replica="u1x9q2ab",role="classifier"} 1.0',
    )
)

TASK = TaskAnswer(
    name="smarthome",
    labels=("normal", "abnormal"),
    question="Is this video normal or abnormal? Answer with one word.",
    rationale_prompt="You are a smart home security expert. Describe the video under these headings.\nSubjects: …\nActions: …",
    headings=("Subjects", "Actions"),
    model=_MODEL,
    rationale_model=_WRITER,
    calibration=_CALIBRATION,
    lineage={"run": "smarthome", "system": "rb-ft", "stage": "classify", "fingerprint": "4bc9a8677f0567bb", "base": "020404c9f15e1cf0"},
    sampled=Sampled(fps=1.0, max_frames=128, max_pixels=151_200),
    limits=Limits(
        max_upload_bytes=67_108_864,
        body_timeout_s=120.0,
        max_duration_s=600.0,
        max_frames=36_000,
        max_frame_pixels=9_437_184,
        max_context_characters=8192,
        max_batch_files=32,
        request_timeout_s=120.0,
        video_kept_s=300.0,
    ),
    num_samples=3,
    has_attention=True,
)
