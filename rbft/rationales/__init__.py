"""Rationales: the worker that makes them, the gates that judge their text, and their table."""
