"""What every section of a configuration is: frozen, and without a key it does not know; and what several check."""

from __future__ import annotations

from typing import Annotated
from urllib.parse import urlsplit

from pydantic import AfterValidator, BaseModel, ConfigDict, Field


class Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


def plain_url(url: str, example: str, where_keys_go: str) -> str:
    """`url` without a slash at its end. What is wrong may hold a key, so that no message repeats it."""
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ValueError(f"must begin with http:// or https:// and a host, e.g. {example}")
    if parts.username is not None or parts.query or parts.fragment:
        raise ValueError(f"must hold no user, password, ?query or #fragment; put the key in an environment variable, {where_keys_go}")
    return url.rstrip("/")


def _named_elsewhere(resources: dict[str, float]) -> dict[str, float]:
    if own := sorted(set(resources) & {"CPU", "GPU", "memory"}):
        raise ValueError(f"must not hold {', '.join(own)}; num_cpus and num_gpus say that, and memory is not reserved")
    return resources


NodeResources = Annotated[dict[str, Annotated[float, Field(gt=0)]], AfterValidator(_named_elsewhere)]
"""What a node must offer beside CPUs and GPUs, by the names that it was started with (`ray start --resources`), and how much is taken."""
