# Derived from wbar/client/_async/ by `make client` (tools/derive_client.py): edit that one.
"""The blocking client, derived from the asynchronous one."""
