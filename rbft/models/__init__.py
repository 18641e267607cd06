"""Models: loading, parameter groups, and the one adapter from clips and prompts to model input."""
