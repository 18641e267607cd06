"""Rationales: the worker that makes them, the gates that judge them, the quality report, and their table."""
