"""The durable state: rows that belong to a tenant, blobs that are named by their content, events that only grow."""
