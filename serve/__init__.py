"""The classifier as an HTTP service: FastAPI routes on Ray Serve.

    python -m serve --config configs/miniature.yaml

The life of a request: `envelope` gives it an id, `keys` asks who sends it, `limits` counts its bytes, `app` reads its form (`upload`), and
`service` lets it wait its turn, has the video decoded in a child process and the engine asked (`classifier`), and keeps the decoded clip
for a while (`clips`); `batch` does that for many. A video that is named by address is fetched before (`links`, `addresses`, `fetching`).
Where the model looks is told by a model of its own (`attention`, in `attention_deployment`). `events` streams text while it is written,
`presence` ends work that nobody waits for any more, `problems` turns whatever went wrong into a problem body, `metrics` counts all of it.

`deployment` puts all that into Ray Serve replicas, which ask each other about the videos that they keep (`replicas`, `routing`), `canary`
says when one is ready and `proxy` what the client gets when one dies. `model` finds the folder that answers, `__main__` starts and ends
the service on one machine, `application` is what `serve deploy` builds (`config.yaml`).
"""
