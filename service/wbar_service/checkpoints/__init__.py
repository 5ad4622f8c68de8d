"""/v1/checkpoints: upload, look, download, delete."""
