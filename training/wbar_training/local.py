"""A job on local files, without the service: the checkpoint is validated, the images are packed, the options resolved."""

import shutil
from pathlib import Path

from wbar.datasets import VOID_LABEL, DatasetFacts, ImageShape, Task
from wbar.errors import NotFound, ValidationFailed
from wbar.job_request import JobOptions
from wbar.replicas import replicas_of
from wbar.resolve import resolve_job
from wbar.spec import JobSpec, StoredDataset, StoredWeights
from wbar.transfers import sha256_of
from wbar_training.data.packed import Packed
from wbar_training.networks.timm_table import TABLES
from wbar_training.uploads import checkpoint_files, dataset_archives
from wbar_training.uploads.limits import UploadLimits
from wbar_training.uploads.packing import pack
from wbar_training.workspace import Workspace


def prepare_weights(
    path: Path, workspace: Workspace, name: str = "start", architecture: str | None = None
) -> StoredWeights:
    """Validate a checkpoint file and put its tensors where a job reads them.

    name: becomes the checkpoint's id, `ckpt_name`.
    architecture: its catalog name; None: detected.

    Raises Rejected, saying what is wrong with the file.
    """
    blob = f"checkpoint-{name}"
    checkpoint = checkpoint_files.validate(path, architecture, None, workspace.input(blob), tables=TABLES)
    return StoredWeights(
        id=f"ckpt_{name}",
        sha256=sha256_of(path),
        blob=blob,
        prefix=checkpoint.prefix,
        network=checkpoint.network,
        pretrained=checkpoint.pretrained,
    )


def prepare_dataset(
    source: str,
    workspace: Workspace,
    task: Task = "classification",
    name: str = "local",
    void_label: int = VOID_LABEL,
) -> tuple[StoredDataset, DatasetFacts]:
    """Pack the images of a folder, an archive, `builtin:…`, or a file that is packed already.

    name: becomes the dataset's id, `ds_name`.
    void_label: of segmentation, the value of pixels that belong to no class.

    Raises Rejected, saying what is wrong with them.
    """
    blob = f"dataset-{name}"
    out, path = workspace.input(blob), Path(source)
    if source.startswith("builtin:"):
        packed = dataset_archives.pack_builtin(source.removeprefix("builtin:"), out, None)
    elif path.suffix == ".safetensors":
        packed = Packed.read(path)
        shutil.copyfile(path, out)
    else:
        packed = pack(path, out, UploadLimits(), task, void_label)
    return StoredDataset(id=f"ds_{name}", sha256=sha256_of(out), blob=blob), facts_of(packed, source)


def facts_of(packed: Packed, source: str | None) -> DatasetFacts:
    """Return the facts of a packed dataset, which a job's options are resolved from."""
    return DatasetFacts(
        task=packed.task,
        classes=tuple(packed.classes),
        train_images=packed.images["train"],
        shape=ImageShape(channels=packed.channels, height=packed.height, width=packed.width),
        many_sizes=packed.many_sizes,
        mean=tuple(packed.mean),
        std=tuple(packed.std),
        source=source,
        held_out_images=packed.images["val"],
        masks=packed.masks,
    )


def prepare_job(
    options: JobOptions,
    start: StoredWeights,
    dataset: StoredDataset,
    facts: DatasetFacts,
    workspace: Workspace,
    others: dict[str, StoredWeights] | None = None,
    evaluation: dict[str, tuple[StoredDataset, DatasetFacts]] | None = None,
    probe: tuple[StoredDataset, DatasetFacts] | None = None,
) -> JobSpec:
    """Return the spec of a job on prepared files.

    others: by id, the checkpoints that a soup or a distillation names.
    evaluation: by name, the evaluation sets.
    probe: the probe images.

    Raises Refused, saying which option does not fit; NotFound for an id that is not among the others.
    """
    by_id = {start.id: start} | (others or {})
    distillation = options.recipe.distillation
    named = [*getattr(options.method, "checkpoints", []), *([distillation.teacher] if distillation else [])]
    unknown = [name for name in named if name not in by_id]
    if unknown:
        raise NotFound(f"there is no checkpoint {unknown[0]!r} here: the files are {', '.join(sorted(by_id))}")
    ingredients = [by_id[name] for name in getattr(options.method, "checkpoints", [])]
    teachers = [by_id[distillation.teacher]] if distillation else []
    if replicas_of(options) > 1:
        raise ValidationFailed(
            f"method.replicas is {replicas_of(options)}, and replicas are jobs of their own, which the service's workers run: "
            "leave it out here",
            [{"pointer": "/method/replicas", "detail": "needs the service"}],
        )
    gpu = workspace.device.startswith("cuda")
    return resolve_job(options, start, dataset, facts, gpu, ingredients, teachers, evaluation, probe)
