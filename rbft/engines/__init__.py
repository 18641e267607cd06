"""Inference engines: one protocol (`base`), three engines (`vllm`, `hf`, and `openai`, which asks a server), and the label tree that two of
them score by (`labels`)."""
