"""vLLM's processes end with the process that owns the engine, however that ends.

vLLM 0.32's EngineCore does not watch its parent: after a SIGKILL of the owner it would go on holding its GPU for ever, unless somebody
above both cleans up, and Ray's raylet may be what died. vLLM calls `die_with_owner` in each of its processes, as a plugin (entry-point
group `vllm.general_plugins`).
"""

from __future__ import annotations

import os

from rbft.parent import die_with_parent

OWNER = "RBFT_ENGINE_OWNER"
"""Environment variable: the process id of the engine's owner; without it this plugin does nothing."""


def die_with_owner() -> None:
    """Have the kernel kill this process when its parent ends: EngineCore with the owner, its workers with it."""
    owner = int(os.environ.get(OWNER, os.getpid()))
    if owner == os.getpid():
        return
    die_with_parent()
    try:
        os.kill(owner, 0)
    except ProcessLookupError:  # It had gone before the kernel was told.
        os._exit(1)
