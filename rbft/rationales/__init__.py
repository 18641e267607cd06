"""Rationales: the worker that makes them, and the folder they are kept in."""
