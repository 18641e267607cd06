"""Annotations and videos in, a manifest out: import, split, leak check, validation, one module a dataset.

Covered: everything that can be known without decoding a frame. Not covered: frames (`rbft.video`) and model input (`rbft.models`).
"""
