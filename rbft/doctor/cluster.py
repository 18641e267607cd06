"""Whether a Ray cluster answers, and takes our token."""

from __future__ import annotations

import os
import socket
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from rbft.doctor.check import Check
from rbft.doctor.packages import installed_version


def check_ray(address: str | None) -> Check:
    """Whether the cluster at `address` answers, is of our Ray version and takes our token. None: jobs start a Ray of their own."""
    import httpx

    token = _ray_token()
    wants_token = os.environ.get("RAY_AUTH_MODE", "").lower() == "token"
    if wants_token and token is None:
        return Check("ray", "fail", "RAY_AUTH_MODE=token, but there is no token", _HOW_TO_GET_A_TOKEN)
    if address is None or address in ("auto", "local"):
        return Check("ray", "ok", f"{installed_version('ray')}; no RAY_ADDRESS, so a job starts a Ray of its own here")
    if not address.startswith(("http://", "https://")):
        return _check_port(address)
    try:
        status, version = _ask(address, "/api/version", token if wants_token else None)
        _, authentication = _ask(address, "/api/authentication_mode", None)
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        mend = "start the cluster, or forward its port: ray dashboard cluster.yaml"
        return Check("ray", "fail", f"{address}: no Ray answers ({error})", mend)
    if status == 401:
        mend = _HOW_TO_GET_A_TOKEN if token is None else "export RAY_AUTH_MODE=token"
        return Check("ray", "fail", f"{address}: wants a token and got none", mend)
    if status == 403:
        return Check("ray", "fail", f"{address}: refuses our token", "copy ~/.ray/auth_token from the head node again")
    if "ray_version" not in version:
        return Check("ray", "fail", f"{address}: answered {status}, not as Ray does", "give a dashboard's address, http://HOST:8265")
    theirs, ours = version["ray_version"], installed_version("ray")
    if theirs != ours:
        return Check("ray", "fail", f"{address} runs Ray {theirs}, here is {ours}", "install the same version at both ends")
    if authentication.get("authentication_mode") == "disabled":
        mend = "whoever reaches it can run code: `ray get-auth-token --generate`, then start it with RAY_AUTH_MODE=token"
        return Check("ray", "warn", f"{address}: Ray {theirs}, without token authentication", mend)
    return Check("ray", "ok", f"{address}: Ray {theirs}, takes our token")


# Where Ray looks, in this order (ray/_private/authentication, 2.60).
_HOW_TO_GET_A_TOKEN = (
    "copy ~/.ray/auth_token from the head node (or make one: `ray get-auth-token --generate`), then export RAY_AUTH_MODE=token; "
    "RAY_AUTH_TOKEN or RAY_AUTH_TOKEN_PATH serve as well"
)


def _ray_token() -> str | None:
    if token := os.environ.get("RAY_AUTH_TOKEN", "").strip():
        return token
    path = Path(os.environ.get("RAY_AUTH_TOKEN_PATH") or Path.home() / ".ray" / "auth_token")
    try:
        return path.read_text(encoding="utf-8").strip() or None
    except OSError:
        return None


def _ask(address: str, path: str, token: str | None) -> tuple[int, dict[str, Any]]:
    """HTTP status and the JSON object of Ray's dashboard at `address`, empty where the answer is none. Redirects are not followed."""
    import httpx

    headers = {} if token is None else {"Authorization": f"Bearer {token}"}
    answer = httpx.get(address.rstrip("/") + path, headers=headers, timeout=10)
    try:
        content = answer.json()
    except ValueError:
        content = {}
    return answer.status_code, content if isinstance(content, dict) else {}


def _check_port(address: str) -> Check:
    """For "ray://host:port" and "host:port", which speak no HTTP: only whether something listens."""
    parts = urlsplit(address if "://" in address else f"ray://{address}")
    try:
        if parts.hostname is None or parts.port is None:
            raise ValueError("host and port are wanted")
        socket.create_connection((parts.hostname, parts.port), timeout=10).close()
    except (OSError, ValueError) as error:
        return Check("ray", "fail", f"{address}: no Ray answers ({error})", "start the cluster, or give its address as http://HOST:8265")
    return Check("ray", "ok", f"{address}: listens (version and token cannot be seen there; http://HOST:8265 shows them)")
