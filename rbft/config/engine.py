"""Models, who writes the rationales, the engine it is asked by, how they are drawn and which are kept."""

from __future__ import annotations

import re
from typing import Any, Literal, get_args

from pydantic import Field, field_validator, model_validator

from rbft.config.section import NodeResources, Section, plain_url


class ModelConfig(Section):
    path: str
    """A folder with a Hugging Face model: a path that every node sees, a folder in a store (s3://…), or hf://ORG/NAME@<commit> of a hub;
    what lies elsewhere is fetched once a node (`rbft.model_store`). Paper: Qwen2-VL-7B and Qwen2.5-VL-7B-Instruct."""
    fingerprint: str | None = Field(None, pattern="^[0-9a-f]{16}$")
    """What it must be: a run with another model is refused, and so is serving it. `rbft doctor --model FOLDER` tells a folder's."""
    dtype: Literal["bfloat16", "float32"] = "bfloat16"
    attention: Literal["sdpa", "flash_attention_2", "eager"] = "sdpa"


_BODY_KEYS_WE_SET = ("messages", "model", "n", "stream", "media_io_kwargs")
"""What `rbft.engines.openai` sets, or reads one whole answer by. The limit of tokens and the like may be given: names differ there."""


class OpenAIServerConfig(Section):
    """A model behind an OpenAI-compatible server: vLLM's with a bigger model, or an API."""

    url: str
    """Where its API begins, as a rule up to /v1, e.g. http://10.0.0.7:8000/v1."""
    model: str = Field(min_length=1)
    """The name the server has for the model."""
    api_key_env: str | None = None
    """The environment variable that holds the key; None sends none. The key itself is written nowhere."""
    frames: Literal["images", "video"] = "images"
    """"images": one a frame, each after its time; all servers take these. "video": one video, as vLLM's server takes it when it is started
    with --trust-request-mm-kwargs."""
    max_concurrency: int = Field(64, gt=0)
    """Requests under way from one engine; one that waits to be tried again keeps its place."""
    requests_per_minute: float | None = Field(None, gt=0)
    """Tries that one engine begins in a minute, evenly spaced, those after a failure among them; None is no limit."""
    timeout_s: float = Field(300.0, gt=0)
    """For one try of a request: how long the server may be silent."""
    max_retries: int = Field(8, ge=0)
    """Of a request that met a busy or failing server (HTTP 408, 409, 429, 5xx), a broken connection or `timeout_s`: after 0.5 s to 8 s
    (together 40 s), or when the server says, if that is within two minutes."""
    extra_body: dict[str, Any] = Field(default_factory=dict)
    """Added to the body of each request, over what it holds by itself, e.g. {top_p: 1, repetition_penalty: 1}, or, where a model wants
    another name, {max_tokens: null, max_completion_tokens: 512}."""

    @field_validator("url")
    @classmethod
    def _url_is_plain(cls, url: str) -> str:
        return plain_url(url, "http://127.0.0.1:8000/v1", "see api_key_env")

    @field_validator("api_key_env")
    @classmethod
    def _key_is_named_not_given(cls, name: str | None) -> str | None:
        if name is not None and not re.fullmatch("[A-Z_][A-Z0-9_]*", name):
            raise ValueError("must be the name of an environment variable, in capitals, e.g. OPENAI_API_KEY, and not the key itself")
        return name

    @field_validator("extra_body")
    @classmethod
    def _request_stays_ours(cls, body: dict[str, Any]) -> dict[str, Any]:
        if ours := sorted(set(body) & set(_BODY_KEYS_WE_SET)):
            raise ValueError(f"must not hold {', '.join(ours)}, which the request sets itself; remove it")
        return body


class TeacherConfig(Section):
    """Who writes the rationales, if not the model itself: beyond the paper, whose model writes its own. At most one of the two."""

    model: ModelConfig | None = None
    """A model folder, as a rule of a bigger model, asked by vLLM as `engine` says."""
    server: OpenAIServerConfig | None = None
    """`engine.num_actors` processes ask it, which take no GPU."""

    @model_validator(mode="after")
    def _one_writes(self) -> TeacherConfig:
        if self.model is not None and self.server is not None:
            raise ValueError("give a model or a server, not both")
        return self


class EngineConfig(Section):
    """vLLM, as an actor owns it. One actor is one engine."""

    max_model_len: int = Field(32_768, gt=0)
    max_num_seqs: int = Field(64, gt=0)
    """Requests in one engine step; twice as many are kept in flight, frames permitting, so that its queue never runs dry."""
    max_num_batched_tokens: int | None = Field(None, gt=0)
    """Tokens of prompts in one engine step, and of encoded videos that are kept, of which one may always be longer; if left out, vLLM's for
    offline work: 8,192 or, on GPUs of 70 GB and more, 16,384. Fewer make steps shorter."""
    tensor_parallel_size: int = Field(1, gt=0)
    gpu_memory_utilization: float = Field(0.90, gt=0, le=1)
    kv_cache_gib_cpu: float = Field(2.0, gt=0)
    """VLLM_CPU_KVCACHE_SPACE, in whole GiB and 1 at least; CPU only."""
    video_cache_gib: float = Field(4.0, gt=0)
    """Of processed videos that an engine keeps in the node's memory (vLLM's `mm_processor_cache_gb`): a label after the first, or a
    rationale after its label, finds its video there. 30 s at the paper's size are 32 MB in bfloat16."""
    block_size: int | None = None
    """Tokens in a block of the prefix cache; None is the engine's own choice (128 on CPU, so short prompts never share)."""
    enforce_eager: bool = False
    max_frame_bytes: int = Field(4 << 30, gt=0)
    """Decoded frames in flight in one actor, at most; with twice `max_num_seqs` clips what bounds its memory."""
    decode_workers: int = Field(4, gt=0)
    """Decoder processes beside each engine."""
    num_actors: int = Field(8, gt=0)
    """Engines, at most; Ray places them where the GPUs are."""
    min_actors: int | None = Field(None, gt=0)
    """Engines a job keeps although it has no work for them; None is `num_actors`. With fewer it begins on the nodes there are, takes those
    that come (an autoscaler's, spot ones), and gives back what it no longer needs."""
    num_cpus: float = Field(8, gt=0)
    """Per actor."""
    num_gpus: float = Field(1, ge=0)
    """Per actor; 0 runs vLLM's CPU backend."""
    resources: NodeResources = Field(default_factory=dict)
    """Per actor: {spot: 1} keeps engines to the nodes that `cluster.yaml` starts as spot."""
    pin_cores: bool = False
    """Whether each actor keeps to `num_cpus` cores that no other has, as long as there are such: for several CPU engines on a node."""
    request_timeout_s: float = Field(900.0, gt=0)
    """An engine that leaves a request unanswered for so long hangs, and is treated as one that died."""
    batch_invariant: bool = False
    """vLLM's batch-invariant kernels: greedy text that does not depend on what else is in a batch. GPUs only; slower."""
    rows_per_block: int = Field(64, gt=0)
    """Videos in one unit of resume: about a minute of one actor's work."""

    @model_validator(mode="after")
    def _gpus_hold_the_engine(self) -> EngineConfig:
        if self.tensor_parallel_size > 1 and 0 < self.num_gpus < self.tensor_parallel_size:
            raise ValueError(
                f"num_gpus {self.num_gpus:g} is less than tensor_parallel_size {self.tensor_parallel_size}, and each part of an engine "
                f"needs a GPU; set num_gpus to {self.tensor_parallel_size}, or tensor_parallel_size to 1"
            )
        return self

    @model_validator(mode="after")
    def _options_fit_the_hardware(self) -> EngineConfig:
        if self.batch_invariant and self.num_gpus == 0:
            raise ValueError("batch_invariant is there for GPUs only, and num_gpus is 0; remove one of them")
        if self.min_actors is not None and self.min_actors > self.num_actors:
            raise ValueError(f"min_actors {self.min_actors} is more than num_actors {self.num_actors}; lower the one or raise the other")
        if self.pin_cores and (self.num_cpus < 1 or self.num_cpus % 1):
            raise ValueError(f"pin_cores needs a whole number of num_cpus to pin an actor to, and that is {self.num_cpus:g}")
        return self


class GenerationConfig(Section):
    """How rationales are drawn (readings, 5: greedy, at most 512 new tokens)."""

    max_new_tokens: int = Field(512, gt=0)
    temperature: float = Field(0.0, ge=0)


GateName = Literal[
    "not_empty",
    "not_cut_off",
    "not_repeating",
    "no_refusal",
    "has_sections",
    "names_no_label",
    "agrees_with_label",
    "no_near_duplicate",
    "usual_length",
]
"""The gates of `rbft.rationales.gates`."""


class GatesConfig(Section):
    """What becomes of rationales that do not pass the gates of `rbft.rationales.gates`. All are kept on disk whatever is chosen."""

    profile: Literal["paper", "filter", "resample", "best_of_n"] = "paper"
    """"paper": one is written for each video, and stage 1 learns from all of them. "filter": stage 1 leaves those out that do not pass
    one of `drop`, and stage 2 still sees their videos. "resample": those are drawn again first, up to `num_redraws` times with another
    seed, then once with the label as a hint. "best_of_n": `num_samples` are drawn, and the one is kept that fails the fewest of `drop`.
    With both, what still does not pass is left out as by "filter"."""
    drop: tuple[GateName, ...] = get_args(GateName)[:7]
    """Those that one text decides by itself. Near-duplicates and unusual lengths are told, and dropped where a task wants that."""
    num_redraws: int = Field(2, ge=0)
    num_samples: int = Field(4, ge=2)
    redraw_temperature: float = Field(0.7, gt=0)
    """Of every draw but a video's first, whose is `generation.temperature`."""
    hint: bool = True
    """Whether the last of "resample" may see the label (readings, 4: recorded in its provenance as `label_in_prompt`)."""

    def drawing(self) -> dict[str, Any] | None:
        """The part that determines what is written, for fingerprints; None where one draw a video is all."""
        used = {"resample": {"num_redraws", "hint"}, "best_of_n": {"num_samples"}}.get(self.profile)
        return None if used is None else self.model_dump(mode="json", include=used | {"profile", "drop", "redraw_temperature"})
