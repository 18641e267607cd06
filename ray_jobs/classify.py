"""Labels for the videos of a manifest, which need none. `python -m ray_jobs.classify --config RUN --manifest FILE --output FOLDER`

What the service would answer (the model of `serve.system`, its calibration), without the service, for as many videos as there are: on the
actors of evaluation, and resumed like it. The folder then has `predictions-00000.parquet` and on, as evaluation writes them, and `labels.csv`.
"""

from __future__ import annotations

import argparse
import csv
import io
import sys
from dataclasses import asdict
from typing import Any

from ray_jobs.command import command
from ray_jobs.inference import run_inference
from ray_jobs.progress import Progress, say
from ray_jobs.run import video_key
from ray_jobs.work import Work
from rbft import artifacts, rows, storage
from rbft.cli import add_run_arguments, read_run, run
from rbft.config import DataConfig, GatesConfig, RunConfig
from rbft.data.manifest import validate_examples
from rbft.data.source import read_examples
from rbft.errors import JobError
from rbft.evaluation.calibration import Calibration, apply_calibration
from rbft.evaluation.predictions import predictions_from_table
from rbft.lease import Lease
from rbft.records import Example, Prediction, prediction_schema
