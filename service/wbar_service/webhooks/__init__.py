"""Webhooks of a tenant, and their deliveries."""
