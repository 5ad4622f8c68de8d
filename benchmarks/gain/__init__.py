"""What averaging gives, on images that no job has seen, beside what it competes with: see `python -m benchmarks.gain`."""
