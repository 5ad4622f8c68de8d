"""/v1/datasets: upload an archive or name a source, look, delete."""
