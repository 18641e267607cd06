"""Every error RB-FT raises on purpose, as one tree.

    RBFTError                       code
    ├── ConfigError                 config           a run or task file is wrong
    ├── DataError                   data             the annotations are wrong
    │   ├── ManifestError           manifest         a manifest file cannot be used
    │   └── LeakError               leak             the same video is in two splits
    ├── VideoError                  video            one video cannot be used; becomes an error row
    │   ├── VideoMissingError       video_missing    no such file
    │   ├── VideoEmptyError         video_empty      the file has no bytes
    │   ├── VideoFormatError        video_format     container, protocol or codec not on the allow-list
    │   ├── NoVideoStreamError      no_video_stream  audio or data only
    │   ├── VideoDecodeError        video_decode     truncated, corrupt, encrypted
    │   ├── VideoTooLargeError      video_too_large  longer, or with more or larger frames, than is taken here
    │   ├── VideoTrimError          video_trim       start/end leave nothing of the clip
    │   ├── VideoTimeoutError       video_timeout    the decoder missed its deadline and was killed
    │   ├── VideoMemoryError        video_memory     the decoder passed its memory limit
    │   └── DecoderCrashError       decoder_crash    the decoder process died
    │       └── DecoderStartError   decoder_start    it did not even start: not the video's fault
    ├── ModelError                  model            a model folder cannot be used
    ├── EngineError                 engine           the inference engine refused or failed on a request
    │   ├── ModelServerError        server_error     a model's server failed on a request, or could not be reached, also after retries
    │   │   ├── ModelServerRefusedError server_refused   it will not have the request: too long, filtered
    │   │   └── OutOfQuotaError     server_quota     the account with it has nothing left to pay with
    │   ├── ModelRefusedError       model_refused    the model declined to answer, or its provider withheld the answer
    │   ├── EngineGoneError         engine_gone      the engine is gone; its owner must exit
    │   └── EngineCrashError        engine_crash     engines died with this video alone in them; becomes an error row
    ├── TrainingError               training         a training run cannot start or go on
    │   ├── NotFiniteError          not_finite       a loss or gradient is NaN or infinite
    │   ├── CheckpointError         checkpoint       a checkpoint is missing, partial or of another run, or cannot be written
    │   └── TrainingStopped         training_stopped a stage was asked to stop, and has saved what it did
    ├── ArtifactError               artifact         an artifact is missing, partial, altered or of another schema
    ├── JobError                    job              a job ended with too many bad rows, or cannot start
    └── ServiceError                service          the HTTP service failed, or cannot be reached
        ├── RequestError            request          the request is not one the service understands
        ├── UnauthorizedError       unauthorized     no key of the service came with the request
        ├── ClipExpiredError        clip_expired     no video of this id is kept, or not any more
        ├── UploadTooLargeError     upload_too_large the request body passes the service's limit
        ├── UploadTimeoutError      upload_timeout   the request body did not come in time
        ├── OverloadedError         overloaded       too many requests wait already; try again later
        ├── RequestTimeoutError     request_timeout  the answer was not ready within the service's time limit
        ├── NotOfferedError         not_offered      the service's configuration leaves this out
        ├── NotReadyError           not_ready        the service has not shown yet that it answers right, or has failed to
        ├── UrlRefusedError         url_refused      the service does not fetch from this address
        └── UrlUnreachableError     url_unreachable  there is no video to be had at this address

A caller catches `RBFTError` and shows `str(error)`; machines read `error.code`.
"""

from __future__ import annotations

from typing import ClassVar


class RBFTError(Exception):
    """Root of the tree. The message says what is wrong, where, and what to do."""

    code: ClassVar[str] = "rbft"


class ConfigError(RBFTError):
    code = "config"


class DataError(RBFTError):
    code = "data"


class ManifestError(DataError):
    code = "manifest"


class LeakError(DataError):
    code = "leak"


class VideoError(RBFTError):
    """One video cannot be used. A job writes it down as an error row with this `code` and goes on."""

    code = "video"


class VideoMissingError(VideoError):
    code = "video_missing"


class VideoEmptyError(VideoError):
    code = "video_empty"


class VideoFormatError(VideoError):
    code = "video_format"


class NoVideoStreamError(VideoError):
    code = "no_video_stream"


class VideoDecodeError(VideoError):
    code = "video_decode"


class VideoTooLargeError(VideoError):
    code = "video_too_large"


class VideoTrimError(VideoError):
    code = "video_trim"


class VideoTimeoutError(VideoError):
    code = "video_timeout"


class VideoMemoryError(VideoError):
    code = "video_memory"


class DecoderCrashError(VideoError):
    code = "decoder_crash"


class DecoderStartError(DecoderCrashError):
    """The installation or the machine is at fault, not the video."""

    code = "decoder_start"


class ModelError(RBFTError):
    code = "model"


class EngineError(RBFTError):
    code = "engine"


class ModelServerError(EngineError):
    code = "server_error"


class ModelServerRefusedError(ModelServerError):
    code = "server_refused"


class OutOfQuotaError(ModelServerError):
    code = "server_quota"


class ModelRefusedError(EngineError):
    code = "model_refused"


class EngineGoneError(EngineError):
    code = "engine_gone"


class EngineCrashError(EngineError):
    code = "engine_crash"


class TrainingError(RBFTError):
    """Trying again meets it again. All ranks of a process group raise it alike; what only one meets is of another kind."""

    code = "training"


class NotFiniteError(TrainingError):
    code = "not_finite"


class CheckpointError(TrainingError):
    code = "checkpoint"


class TrainingStopped(TrainingError):  # noqa: N818 - nothing went wrong
    """A stage was asked to stop, and has saved what it did."""

    code = "training_stopped"


class ArtifactError(RBFTError):
    code = "artifact"


class JobError(RBFTError):
    code = "job"


class ServiceError(RBFTError):
    code = "service"


class RequestError(ServiceError):
    code = "request"


class UnauthorizedError(ServiceError):
    code = "unauthorized"


class ClipExpiredError(ServiceError):
    code = "clip_expired"


class UploadTooLargeError(ServiceError):
    code = "upload_too_large"


class UploadTimeoutError(ServiceError):
    code = "upload_timeout"


class OverloadedError(ServiceError):
    code = "overloaded"


class RequestTimeoutError(ServiceError):
    code = "request_timeout"


class NotOfferedError(ServiceError):
    code = "not_offered"


class NotReadyError(ServiceError):
    code = "not_ready"


class UrlRefusedError(ServiceError):
    code = "url_refused"


class UrlUnreachableError(ServiceError):
    code = "url_unreachable"


def _walk(root: type[RBFTError]) -> list[type[RBFTError]]:
    return [root, *(sub for child in root.__subclasses__() for sub in _walk(child))]


def error_from_code(code: str, message: str) -> RBFTError:
    """The error of our tree whose `code` is `code`, carrying `message`; `VideoError` for a code this version does not know.

    Used to carry an error across a process boundary without pickling exceptions.
    """
    by_code = {error.code: error for error in _walk(RBFTError)}
    return by_code.get(code, VideoError)(message)
