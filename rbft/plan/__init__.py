"""What a run would do, said before anything starts: `--dry-run` and `rbft plan`.

    print(format_plan(build_plan(config)))

Reads the manifest or annotations, the headers of a few videos and the model's config.json and tokenizer, as far as they are there; what is
not there is said to be unknown. Loads no weights, starts no process.
"""

from rbft.plan.build import build_plan
from rbft.plan.steps import InferenceStep, Plan, Range, SampleTokens, TrainingStep
from rbft.plan.text import format_plan

__all__ = ["InferenceStep", "Plan", "Range", "SampleTokens", "TrainingStep", "build_plan", "format_plan"]
