"""One YAML a run, read into frozen models. The defaults are the paper's, each with its source.

    load_config(path, overrides) -> RunConfig

An unknown key is refused with its path and a suggestion, a key that stands twice with its line. Relative paths in a file are relative
to that file. `--set a.b=c` overrides one value (`c` is read as YAML; a path is relative to where the command is given). What a run would
do with a configuration is in `rbft.plan`.

Sources: "paper 4.1" is the paper's "Implementation Details"; "readings N" is our reading of an open point (docs/readings.md).
"""

from __future__ import annotations

from rbft.config.api_models import APIModelConfig
from rbft.config.data import DataConfig, VideoConfig
from rbft.config.engine import EngineConfig, GateName, GatesConfig, GenerationConfig, ModelConfig, OpenAIServerConfig, TeacherConfig
from rbft.config.load import dump_config, load_config, load_task
from rbft.config.looking import AttentionConfig, MaskingConfig
from rbft.config.run import EvaluationConfig, RunConfig
from rbft.config.serve import Canary, ServeConfig, is_loopback
from rbft.config.training import LoraConfig, ModelPart, OptimiserConfig, StageOptimisers, TrainingConfig, ValidationConfig
from rbft.config.urls import UrlsConfig
from rbft.config.video_classifiers import VideoClassifierConfig

__all__ = [
    "APIModelConfig",
    "AttentionConfig",
    "Canary",
    "DataConfig",
    "EngineConfig",
    "EvaluationConfig",
    "GateName",
    "GatesConfig",
    "GenerationConfig",
    "LoraConfig",
    "MaskingConfig",
    "ModelConfig",
    "ModelPart",
    "OpenAIServerConfig",
    "OptimiserConfig",
    "RunConfig",
    "ServeConfig",
    "StageOptimisers",
    "TeacherConfig",
    "TrainingConfig",
    "UrlsConfig",
    "ValidationConfig",
    "VideoClassifierConfig",
    "VideoConfig",
    "dump_config",
    "is_loopback",
    "load_config",
    "load_task",
]
