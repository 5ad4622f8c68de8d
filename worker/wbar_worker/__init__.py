"""Celery workers: claim a job, run its training in a fresh process, publish its messages. No torch in the worker itself."""
