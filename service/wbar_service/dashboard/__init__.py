"""The dashboard: pages of this process, on the same store and the rules of the API: whatever a page does, `curl` can do."""
