"""Uploads that arrive in parts: tus 1.0.0 at /v1/uploads."""
