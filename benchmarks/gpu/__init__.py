"""Measurements that only a GPU can show: `python -m benchmarks.gpu`, and each part by itself."""
