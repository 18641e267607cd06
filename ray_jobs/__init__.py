"""What a person submits: generate, train, evaluate, pipeline. Wiring and resources; the science is in `rbft`."""
