"""The resource /v1/studies."""
