"""Measurements of the averaging library beside its peers: `python -m benchmarks.averaging`."""
