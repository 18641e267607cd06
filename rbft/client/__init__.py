"""A client of the HTTP API (`serve/`).

    with Client("http://127.0.0.1:8000") as client:
        answer = client.classify("clip.mp4")
        print(answer.label, answer.probabilities)
        for said in client.stream_rationale(video_id=answer.video_id):     # why? without a second upload
            ...

`AsyncClient` is the same for an event loop. The key is taken from the environment variable RBFT_KEY unless it is given.

A refusal comes back as the error of our tree whose code the service named, so `except VideoError` works as it does locally. What is refused
for the moment (503, or a connection that breaks) is tried again, as late as the service says.
"""

from rbft.client.awaiting import AsyncClient
from rbft.client.blocking import Client
from rbft.client.wire import Said

__all__ = ["AsyncClient", "Client", "Said"]
