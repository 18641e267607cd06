"""The classifier as an HTTP service: FastAPI routes on Ray Serve.

    python -m serve --config configs/miniature.yaml

The life of a request: `limits` counts its bytes and may make it wait, `app` lays the upload in a temporary file, `classifier` decodes it
in a child process and asks the engine, `problems` turns whatever went wrong into a problem body. `deployment` puts all that into Ray
Serve replicas, `model` finds the folder that answers, `__main__` starts and ends it.
"""
