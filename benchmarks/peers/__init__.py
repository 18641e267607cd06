"""The contenders of `benchmarks/training.py`, each in a process of its own, the peers in environments of their own (`setup.sh`).

Nothing here but `ours` imports rbft: their environments do not have what it needs.
"""
