"""The resource /v1/merges."""
