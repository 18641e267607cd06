"""RB-FT: rationale-bootstrapped fine-tuning for video classification.

The library part: videos, prompts, models, losses, metrics. It never imports Ray; what a cluster runs is in `ray_jobs/` and `serve/`.
Importing this package loads neither torch, vllm, deepspeed nor ray.
"""

__version__ = "0.1.0"
