"""Celery workers: claim a job, run its training in a fresh process, publish what happens. No torch in the worker itself."""
