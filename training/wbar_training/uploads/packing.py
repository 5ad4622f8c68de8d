"""One way to pack an archive or a folder, whatever its task."""

from functools import partial
from pathlib import Path

from wbar.datasets import VOID_LABEL, Task
from wbar_training.data.packed import Packed
from wbar_training.uploads import dataset_archives
from wbar_training.uploads.archives import archive_members, folder_members
from wbar_training.uploads.attribute_table import AttributeTable
from wbar_training.uploads.box_archives import pack_boxes
from wbar_training.uploads.label_table import LabelTable
from wbar_training.uploads.limits import UploadLimits
from wbar_training.uploads.mask_archives import pack_masks
from wbar_training.uploads.target_table import TargetTable
from wbar_training.uploads.unlabelled_archives import pack_unlabelled

TABLES: dict[Task, type[LabelTable]] = {"regression": TargetTable, "attributes": AttributeTable}


def pack(source: Path, out: Path, limits: UploadLimits, task: Task, void_label: int = VOID_LABEL) -> Packed:
    """Pack an archive or a folder, which may hold no links. Raises a class of wbar.errors.Rejected.

    void_label: of segmentation, the value of pixels that belong to no class.
    """
    members = folder_members if source.is_dir() else archive_members
    if task == "segmentation":
        return pack_masks(partial(members, source, limits), out, limits, void_label)
    if task == "detection":
        return pack_boxes(partial(members, source, limits), out, limits)
    if task == "unlabelled":
        return pack_unlabelled(partial(members, source, limits), out, limits)
    if task in TABLES:
        table = TABLES[task](limits.header_bytes)
        return dataset_archives.pack_images(partial(members, source, limits), out, limits, table)
    pack_images = dataset_archives.pack_folder if source.is_dir() else dataset_archives.pack_archive
    return pack_images(source, out, limits, task == "multilabel")
