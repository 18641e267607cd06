"""A whole run: one YAML."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from rbft.config.api_models import APIModelConfig
from rbft.config.data import DataConfig, VideoConfig
from rbft.config.engine import EngineConfig, GatesConfig, GenerationConfig, ModelConfig, TeacherConfig
from rbft.config.looking import AttentionConfig, MaskingConfig
from rbft.config.section import Section
from rbft.config.serve import ServeConfig
from rbft.config.training import TrainingConfig
from rbft.config.video_classifiers import VideoClassifierConfig
from rbft.systems import DEFAULT_SYSTEMS, SystemName, parse_system, parse_systems
from rbft.task import Task


class EvaluationConfig(Section):
    systems: tuple[SystemName, ...] = DEFAULT_SYSTEMS
    """What is trained and compared; `rbft.systems` says what the names mean. May be empty where `api_models` or `video_classifiers`
    name any."""
    api_models: tuple[APIModelConfig, ...] = ()
    """Models behind OpenAI-compatible servers, asked the same question about the same videos (docs/baselines.md)."""
    api_cache: str | None = None
    """Where their answers are kept, so that no answer is paid twice; None is `<output_dir>/api-cache`, which the runs there share."""
    video_classifiers: tuple[VideoClassifierConfig, ...] = ()
    """Specialised video models, fine-tuned on the same split (docs/baselines.md)."""
    split: Literal["train", "validation", "test"] = "test"
    engine: Literal["vllm", "hf"] = "vllm"
    """What scores: vLLM, or plain transformers (quicker to start; the same numbers to 2e-3)."""
    max_new_tokens: int = Field(16, gt=0)
    """For the "generate" mode (readings, 12)."""
    calibrate: bool = False
    """Whether the validation split is scored too, and a temperature and a threshold fitted on it; the report has both numbers, with and
    without them (readings, 12). They change no prediction that is kept."""
    num_report_samples: int = Field(36, ge=0)
    """Test videos that the report shows with frames and with the rationale that the main system's model writes about them; the cells of all
    confusion matrices share them out, mistakes and the least certain first. 0 shows none, and asks for nothing."""
    report_attention: bool = True
    """Whether the report also shows where the main system's model looks on those videos (`attention` says how); read by plain transformers
    with the resources of one engine. A model that it cannot be read of is named there instead."""
    attributes: str | None = None
    """A CSV, TSV, JSONL or Parquet file with a column `id` and others by whose values failures are counted, beside label and category."""
    rationale_check: int | None = Field(None, ge=0)
    """Held-out videos that every model with a stage 1 explains again after stage 2; the report has the share of its rationales that pass
    the gates, before and after (readings, 27). 0 asks for none. None: 64 where `training.replay_share` has stage 2 learn rationales too,
    to see what that is worth, else 0."""
    masking: MaskingConfig = MaskingConfig()
    attention: AttentionConfig = AttentionConfig()

    @model_validator(mode="after")
    def _systems_are_distinct(self) -> EvaluationConfig:
        if len(set(self.systems)) != len(self.systems):
            raise ValueError(f"systems must be distinct; got {', '.join(self.systems)}")
        if not (self.systems or self.api_models or self.video_classifiers):
            raise ValueError("names no system to evaluate; give systems, api_models or video_classifiers")
        return self

    @model_validator(mode="after")
    def _others_have_names_of_their_own(self) -> EvaluationConfig:
        for name in self._others:
            if self._others.count(name) > 1:
                raise ValueError(f"api_models and video_classifiers must have distinct names; {name!r} stands twice")
            try:
                parse_system(name)
            except ValueError:
                continue
            raise ValueError(f"name {name!r} is that of a system which is trained here; give the API model or video classifier another")
        return self

    @model_validator(mode="after")
    def _is_not_tested_on_what_it_is_calibrated_on(self) -> EvaluationConfig:
        if self.calibrate and self.split == "validation":
            raise ValueError("calibrate fits on the validation split, so that evaluation.split must be another; leave one of them out")
        return self

    @property
    def all_systems(self) -> tuple[str, ...]:
        """Every system that is evaluated, in the order of a report: API models first, then specialised video models."""
        return (*self._others, *self.systems)

    @property
    def _others(self) -> list[str]:
        return [*(model.name for model in self.api_models), *(classifier.name for classifier in self.video_classifiers)]

    @property
    def takes_unlabelled(self) -> bool:
        """Whether a system learns from training videos without a label."""
        return any(system.unlabelled_too for system in parse_systems(self.systems))

    @property
    def needs_rationales(self) -> bool:
        """Whether a system learns from rationales that the base model writes."""
        return any(system.rationales in ("own", "shuffled") for system in parse_systems(self.systems))


class RunConfig(Section):
    """Everything that determines a run."""

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")
    output_dir: str = "runs"
    """The run's folder is `<output_dir>/<name>`; a local path or a URI of any pyarrow filesystem. Relative to where the job is started."""
    seed: int = Field(0, ge=0)
    task: Task
    """In the file: the path of a task file, or the task itself."""
    data: DataConfig
    video: VideoConfig = VideoConfig()
    model: ModelConfig
    teacher: TeacherConfig = TeacherConfig()
    engine: EngineConfig = EngineConfig()
    generation: GenerationConfig = GenerationConfig()
    gates: GatesConfig = GatesConfig()
    training: TrainingConfig = TrainingConfig()
    evaluation: EvaluationConfig = EvaluationConfig()
    serve: ServeConfig = ServeConfig()

    @model_validator(mode="after")
    def _seeds_are_distinct(self) -> RunConfig:
        seeds = (self.seed, *self.training.seeds)
        if len(set(seeds)) != len(seeds):
            raise ValueError(f"training.seeds are further ones, all different, beside seed {self.seed}; got {list(self.training.seeds)}")
        return self

    @model_validator(mode="after")
    def _batches_of_video_classifiers_divide(self) -> RunConfig:
        for classifier in self.evaluation.video_classifiers:
            classifier.training(self.training)
        return self

    @property
    def run_dir(self) -> str:
        return f"{self.output_dir.rstrip('/')}/{self.name}"

    @property
    def num_rationales_checked(self) -> int:
        """`evaluation.rationale_check`, or what follows from `training.replay_share` where it is not given."""
        given = self.evaluation.rationale_check
        return (64 if self.training.replay_share > 0 else 0) if given is None else given

    @property
    def api_cache(self) -> str:
        """The folder of the answers of API models."""
        return self.evaluation.api_cache or f"{self.output_dir.rstrip('/')}/api-cache"

    @model_validator(mode="after")
    def _answers_fit_the_engine(self) -> RunConfig:
        if self.generation.max_new_tokens >= self.engine.max_model_len:
            raise ValueError(
                f"generation.max_new_tokens {self.generation.max_new_tokens} leaves no room for a video in engine.max_model_len "
                f"{self.engine.max_model_len}; raise the one or lower the other"
            )
        return self

    @model_validator(mode="after")
    def _packed_rows_need_their_attention(self) -> RunConfig:
        if self.training.batching == "packed" and self.model.attention == "eager":
            raise ValueError(
                "model.attention eager cannot take packed rows without a mask of n x n tokens; set training.batching to padded, or "
                "model.attention to sdpa"
            )
        return self
