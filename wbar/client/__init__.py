"""The Python client: typed objects in and out, digests always verified, retries, downloads that resume, errors as classes.

client = Client()                                  # address and key from the environment or the configuration file
checkpoint = client.checkpoints.create("resnet20.pth")
dataset = client.datasets.create("builtin:digits")
job = client.jobs.create(checkpoint=checkpoint.id, dataset=dataset.id)
job = client.jobs.wait(job.id)
client.jobs.download(job.id, "averaged.safetensors")

`AsyncClient` has the same methods to be awaited. `_async/` is the source of both; `make client` derives `_sync/` from it
(tools/derive_client.py), and a test compares them.
"""

from wbar.client._async.client import AsyncClient
from wbar.client._sync.client import Client

__all__ = ["AsyncClient", "Client"]
