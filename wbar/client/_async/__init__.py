"""The source of both clients, one module per resource. `make client` derives `wbar/client/_sync/` from it."""
