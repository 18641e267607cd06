"""The fine-tuning recipes that the authors of UniFormerV2 and InternVideo2 published, as settings of `evaluation.video_classifiers`.

UniFormerV2: `exp/*/run.sh` and `config.yaml` of github.com/OpenGVLab/UniFormerV2 at 722a434; rates are for their batch as it is.
InternVideo2: `scripts/finetuning/full_tuning/*.sh` and `run_finetuning.py` in InternVideo2/single_modality of
github.com/OpenGVLab/InternVideo at 3965eef; rates are for 256 clips and scaled with the batch, so that the batch is ours to choose.

A bare name is the recipe of Kinetics-400 after Kinetics-710: short and gentle, as the head knew most classes already. `-transfer` is
that of Moments in Time, classes the head had never seen: the same situation as a run's. InternVideo2 published it for its 1B.
Left out: repeated augmentation (InternVideo2 cuts each video twice a step), and the choice of the best epoch on the validation split.
"""

from __future__ import annotations

from typing import Any

_VIEWS = {"num_clips": 4, "num_crops": 3}
_AUGMENTED = {"least_area": 0.08, "random_augment": 4, "weight_decay": 0.05, "betas": (0.9, 0.999), "eps": 1e-8}

_UNIFORMERV2 = {**_VIEWS, **_AUGMENTED, "initial_learning_rate": 1e-6, "final_learning_rate": 1e-6, "max_grad_norm": 20.0}
_UNIFORMERV2_B16 = {**_UNIFORMERV2, "global_batch_size": 256, "micro_batch_size": 8}
_UNIFORMERV2_L14 = {**_UNIFORMERV2, "global_batch_size": 128, "micro_batch_size": 4, "gradient_checkpointing": True}

_INTERNVIDEO2 = {
    **_VIEWS,
    **_AUGMENTED,
    **{"initial_learning_rate": 1e-6, "final_learning_rate": 1e-6, "learning_rate_batch": 256, "max_grad_norm": None},
    **{"label_smoothing": 0.1, "mixup": 0.8, "cutmix": 1.0, "random_erasing": 0.25, "global_batch_size": 64},
}
_SIZES: dict[str, dict[str, Any]] = {
    "s14": {"drop_path_rate": 0.1, "layer_decay": 0.75, "micro_batch_size": 8},
    "b14": {"drop_path_rate": 0.1, "layer_decay": 0.75, "micro_batch_size": 8},
    "l14": {"drop_path_rate": 0.1, "layer_decay": 0.75, "micro_batch_size": 4},
    "1b": {"drop_path_rate": 0.3, "layer_decay": 0.9, "micro_batch_size": 2, "gradient_checkpointing": True},
    "6b": {"drop_path_rate": 0.35, "layer_decay": 0.915, "micro_batch_size": 2, "gradient_checkpointing": True},
}
_SMALL = {"learning_rate": 2e-5, "epochs": 5, "warmup_ratio": 0.2}
_KINETICS: dict[str, dict[str, Any]] = {
    **{"s14": _SMALL, "b14": _SMALL, "l14": _SMALL},
    "1b": {"learning_rate": 1e-5, "epochs": 3, "warmup_ratio": 0.0},
    "6b": {"learning_rate": 1e-5, "epochs": 1, "warmup_ratio": 0.0},
}
_MOMENTS = {"learning_rate": 5e-5, "epochs": 15, "warmup_ratio": 5 / 15}

RECIPES: dict[str, dict[str, Any]] = {
    "uniformerv2-b16": {**_UNIFORMERV2_B16, "learning_rate": 2e-6, "epochs": 5, "warmup_ratio": 1 / 5},
    "uniformerv2-l14": {**_UNIFORMERV2_L14, "learning_rate": 1.5e-6, "epochs": 5, "warmup_ratio": 1 / 5},
    "uniformerv2-b16-transfer": {**_UNIFORMERV2_B16, "learning_rate": 2e-5, "epochs": 24, "warmup_ratio": 5 / 24},
    "uniformerv2-l14-transfer": {**_UNIFORMERV2_L14, "learning_rate": 1e-5, "epochs": 18, "warmup_ratio": 5 / 18},
    **{f"internvideo2-{size}": {**_INTERNVIDEO2, **own, **_KINETICS[size]} for size, own in _SIZES.items()},
    **{f"internvideo2-{size}-transfer": {**_INTERNVIDEO2, **own, **_MOMENTS} for size, own in _SIZES.items()},
}
"""Name -> what a classifier with this `recipe` has unless it says otherwise."""
