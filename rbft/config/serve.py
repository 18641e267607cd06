"""The endpoint: where it listens, who may ask, and what a request may cost."""

from __future__ import annotations

import ipaddress

from pydantic import Field, field_validator, model_validator

from rbft.config.section import Section
from rbft.config.urls import UrlsConfig
from rbft.systems import SystemName

STAGE_1 = "stage-1"
"""In place of a folder: the model that the run has after stage 1 of the system that is served."""


class Canary(Section):
    """A clip whose label is known."""

    video: str
    """A file, on every machine that may hold a replica."""
    label: str
    """What the model says of it when all is well."""


class ServeConfig(Section):
    host: str = "127.0.0.1"
    port: int = Field(8000, ge=0, le=65_535)
    keys: str | None = None
    """The file of those who may ask, made by `rbft keys add`; read again when it changes. None answers this machine only, and is refused
    with a host that others can reach."""
    system: SystemName = "rb-ft"
    """Whose model answers."""
    rationale_model: str | None = None
    """What writes the rationales, if not the model that classifies: "stage-1" for the run's model after stage 1 (the paper's M_inter), or a
    folder, local or in a store, with a model or with an adapter as `rbft export` takes it, which is merged when a replica starts. It has an
    engine of its own: each of the two gets half of `engine.gpu_memory_utilization` and of `engine.kv_cache_gib_cpu`."""
    calibration: str | None = None
    """A file of `rbft predictions calibrate`. None takes the calibration in the model's task card, else the one that the run has for this
    very model, if any."""
    num_replicas: int = Field(1, gt=0)
    """As long as `max_replicas` does not let their number follow the load."""
    min_replicas: int = Field(1, gt=0)
    max_replicas: int | None = Field(None, gt=0)
    """With it there are as many replicas as the requests under way fill, each with `engine.max_num_seqs`, within these bounds. A new one
    takes an engine's start until it answers."""
    update_beside: bool = True
    """Whether an update starts one new replica more before an old one goes, so that there is always one that answers. It needs room for
    that one; without, set it to false, and requests wait, or are told to come again, while a new engine starts."""
    max_upload_bytes: int = Field(64 << 20, gt=0)
    """Of the whole request body, counted while it is read."""
    max_bytes_in_flight: int = Field(4 << 30, gt=0)
    """Of the bodies of all requests under way in a replica; a request that brings more is told to come again. Above 1 MiB they lie in the
    temporary folder, and those that are being decoded a second time, so that it needs room for twice as much."""
    max_batch_files: int = Field(32, gt=0)
    """In one request of `/v1/classify/batch`; all together have at most `max_upload_bytes`."""
    body_timeout_s: float = Field(120.0, gt=0)
    """How long a client may take to send its body."""
    max_duration_s: float = Field(600.0, gt=0)
    """Of a video."""
    max_frames: int = Field(36_000, gt=0)
    """Of a video, as stored: ten minutes at 60 a second."""
    max_frame_pixels: int = Field(4096 * 2304, gt=0)
    """Of one of its frames, as stored: 4K."""
    request_timeout_s: float = Field(120.0, gt=0)
    """For an answer, from the end of the body on."""
    max_queued_requests: int = Field(64, gt=0)
    """Classifications that may wait, and as many rationales."""

    urls: UrlsConfig = UrlsConfig()
    """Where videos may be fetched from that a client names instead of sending them."""

    samples: tuple[str, ...] = ()
    """Clips that the page at `/` offers to those who have none at hand: files, on every machine that may hold a replica. Those that are
    not there when it starts are left out. Whoever may ask may have them."""

    attention: bool = False
    """Whether `/v1/attention` tells where the model looks. Plain transformers loads the weights once more for that, in its own process;
    `evaluation.attention.num_layers` says over how many layers the maps are averaged."""
    attention_num_cpus: float = Field(1.0, ge=0)
    """What that process reserves in Ray."""
    attention_num_gpus: float = Field(0.0, ge=0)
    """Likewise: a share of a GPU is room for its weights; 0 reads on the CPU."""

    canary: tuple[Canary, ...] = ()
    """Clips that a replica must give their label before it is called ready; one that does not, does not start. Without any, a drawn clip
    must be decoded and get probabilities."""

    clip_cache_bytes: int = Field(1 << 30, ge=0)
    """Decoded frames that a replica keeps, so that "why?" needs no second upload; 0 keeps none. 60 frames of 420 x 360 are 27 MB."""
    clip_cache_s: float = Field(300.0, gt=0)
    """How long it keeps them."""

    @field_validator("canary", mode="before")
    @classmethod
    def _one_is_a_list(cls, canary: object) -> object:
        return (canary,) if isinstance(canary, dict) else canary

    @model_validator(mode="after")
    def _bounds_are_in_order(self) -> ServeConfig:
        if self.min_replicas > (self.max_replicas or self.min_replicas):
            raise ValueError(
                f"min_replicas {self.min_replicas} is more than max_replicas {self.max_replicas}; lower the one or raise the other"
            )
        if self.max_replicas is None and self.min_replicas > 1:
            raise ValueError("min_replicas is for a number that follows the load; set max_replicas too, or num_replicas instead")
        if self.max_replicas is not None and self.num_replicas > 1:
            raise ValueError("num_replicas is a fixed number, and max_replicas lets it follow the load; remove one of them")
        return self

    @model_validator(mode="after")
    def _one_body_has_room(self) -> ServeConfig:
        if self.max_upload_bytes > self.max_bytes_in_flight:
            raise ValueError(
                f"max_upload_bytes {self.max_upload_bytes} is more than max_bytes_in_flight {self.max_bytes_in_flight} of all requests "
                "together; lower the one or raise the other"
            )
        return self

    @model_validator(mode="after")
    def _others_need_keys(self) -> ServeConfig:
        if self.keys is None and not is_loopback(self.host):
            raise ValueError(
                f"host {self.host} can be reached from other machines, and keys is not set; make a file of keys with `rbft keys add FILE "
                "NAME` and name it in serve.keys, or serve on 127.0.0.1"
            )
        return self


def is_loopback(host: str) -> bool:
    """Whether `host`, a name or an address, is this machine to itself."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host.lower() == "localhost"
