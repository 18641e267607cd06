"""Inference engines: one protocol (`base`), two engines (`vllm`, `hf`), and the label tree they score by (`labels`)."""
