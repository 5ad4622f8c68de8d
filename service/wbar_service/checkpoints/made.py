"""What a job or a merge has made, as the content of a new checkpoint."""

from wbar.catalog import EXPORTED
from wbar.merges import EXTENSIONS
from wbar_service.arriving import Made
from wbar_service.jobs.files import no_result
from wbar_store.database import Tenant
from wbar_store.store import Store


def made_by(store: Store, tenant: Tenant, source: str) -> tuple[Made, str | None]:
    """Return the weights of a job or a merge, and the architecture that they are of where their tensors may not say it.

    source: `job_…` or `merge_…`.

    Raises NotFound, JobNotFinished, NoWeights, FilesExpired.
    """
    if source.startswith("merge_"):
        merge = store.merges.get(tenant, source)
        return Made(source, merge.result(), f"{merge.name or source}{EXTENSIONS[merge.spec.format]}"), None
    job = store.jobs.get(tenant, source)
    if job.weights is None:
        no_result(job, "averaged weights")
    network, name = job.spec.network, job.name or source
    if network.config is not None and (folder := store.jobs.file(job, "huggingface")) is not None:
        return Made(source, folder, f"{name}.zip"), None  # its configuration says what the tensors do not
    itself = None if network.config is not None or network.name == EXPORTED else network.name
    return Made(source, job.weights, f"{name}.safetensors"), itself
