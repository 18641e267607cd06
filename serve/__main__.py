"""`python -m serve --config RUN.yaml`: the endpoint on the run's model, until Ctrl-C or SIGTERM.

Starts a Ray of its own and ends it, or, where RAY_ADDRESS names a cluster, deploys there and takes away only what it deployed.
"""

from __future__ import annotations

import argparse
import logging
import math
import os
import signal
import socket
import sys
from types import FrameType
from typing import NoReturn

from ray_jobs.ray_runtime import require_token_authentication
from rbft.config import RunConfig, load_config
from rbft.errors import JobError, RBFTError
from serve.model import ModelSource, what_to_serve

_OWN_RAY = {
    "worker_niceness": 0,  # 15 is for batch jobs, and here somebody waits
    "automatic_object_spilling_enabled": False,  # what passes between processes is of users' videos, and must not come to lie on a disk
}


def main() -> int:
    arguments = _arguments()
    try:
        overrides = arguments.set + ([f"serve.port={arguments.port}"] if arguments.port is not None else [])
        config = load_config(arguments.config, overrides)
        _serve(*what_to_serve(config, arguments.model))
    except RBFTError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        pass
    return 0


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m serve", description="Serve a run's classifier over HTTP.")
    parser.add_argument("--config", required=True, metavar="FILE", help="the YAML of the run whose model answers")
    parser.add_argument("--set", action="append", default=[], metavar="A.B=C", help="override one value of it")
    parser.add_argument("--model", metavar="FOLDER", help="serve the model in this folder instead of the run's `serve.system`")
    parser.add_argument("--port", type=int, metavar="N", help="short for --set serve.port=N; 0 takes a free one")
    return parser.parse_args()


def _serve(config: RunConfig, source: ModelSource) -> NoReturn:
    """Start, say so, wait for Ctrl-C or SIGTERM (both raise KeyboardInterrupt), end what was started."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    # Late, so that a mistake in the configuration is told at once.
    import ray
    from ray import serve

    from serve.deployment import APPLICATION, cpus_needed, deploy
    from serve.proxy import PROXY_SETTING

    port = free_port(config.serve.host, config.serve.port)
    on_own_ray = not os.environ.get("RAY_ADDRESS")
    if on_own_ray:
        require_token_authentication()
    print(f"starting {config.serve.num_replicas} replica(s) of {source.name} from {source.uri}; an engine takes about a minute", flush=True)
    if source.writer is not None:
        print(f"rationales by {source.writer.name} from {source.writer.uri}, in an engine of its own", flush=True)
    # A laptop with fewer cores than the configuration asks for serves too, only slower.
    num_cpus = max(os.cpu_count() or 1, math.ceil(cpus_needed(config))) if on_own_ray else None
    for name, value in PROXY_SETTING.items():
        os.environ.setdefault(name, value)
    try:
        ray.init(
            address="local" if on_own_ray else None,  # else Ray would join whichever cluster was last started on this machine
            num_cpus=num_cpus,
            namespace=APPLICATION,
            include_dashboard=False,
            logging_level=logging.WARNING,
            log_to_driver=False,
            _system_config=_OWN_RAY if on_own_ray else None,
        )
        # After ray.init, which installs a handler of its own.
        signal.signal(signal.SIGTERM, _interrupt)
        logging.getLogger("ray.serve").setLevel(logging.WARNING)
        deploy(config, source, port)
        print(_welcome(config, port), flush=True)
        while True:
            signal.pause()
    finally:
        for stop in (signal.SIGINT, signal.SIGTERM):
            signal.signal(stop, signal.SIG_IGN)  # a second Ctrl-C must not leave processes behind
        print("stopping", flush=True)
        if ray.is_initialized():
            if on_own_ray:
                serve.shutdown()
            else:
                serve.delete(APPLICATION)
        ray.shutdown()


def _interrupt(signum: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt


def free_port(host: str, port: int) -> int:
    """`port`, or a free one for 0; raises `JobError` if it is taken, which Ray Serve would say far less clearly."""
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            raise JobError(f"{host}:{port} cannot be used ({error.strerror}); end what runs there or give another --port") from None
        return int(probe.getsockname()[1])


def _welcome(config: RunConfig, port: int) -> str:
    url = f"http://{config.serve.host}:{port}"
    curl = "curl" if config.serve.keys is None else 'curl -H "Authorization: Bearer $RBFT_KEY"'
    return "\n".join(
        [
            f"ready: {url} (a page to try it on; Ctrl-C ends it)",
            f"  {curl} {url}/v1/task",
            f"  {curl} -F video=@clip.mp4 {url}/v1/classify",
            f"  {curl} -F video=@clip.mp4 {url}/v1/rationale",
            f"  {url}/openapi.json describes the rest",
        ]
    )


if __name__ == "__main__":
    sys.exit(main())
