"""Hostile uploads, made from a seed, against the readers in the processes that the worker starts: `python -m tests.fuzz`."""
