"""Measurements. Each module prints its table and writes benchmarks/results/<name>.md with command, versions and machine."""
