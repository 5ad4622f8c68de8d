"""Real images that come with a dependency or a distribution package: scikit-learn's digits, Fashion-MNIST."""

import gzip
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from wbar.errors import SourceUnavailable

FASHION_FOLDERS: tuple[Path, ...] = (
    Path("data/FashionMNIST/raw"),
    Path("~/.cache/torchvision/FashionMNIST/raw"),
    Path("/usr/share/datasets/fashion-mnist"),
)


def digits() -> tuple[Tensor, Tensor]:
    """Return images (1797, 1, 8, 8) uint8 and labels (1797,) int64. Raises SourceUnavailable without scikit-learn."""
    try:
        from sklearn.datasets import load_digits
    except ImportError:
        raise SourceUnavailable("builtin:digits needs scikit-learn: pip install 'wbar[worker]'") from None
    dataset = load_digits()
    # The scans hold 0..16 in an 8 × 8 grid; as pixels, 0..255.
    images = torch.from_numpy((dataset.images * (255 / 16)).round().astype(np.uint8))[:, None]
    labels = torch.from_numpy(dataset.target.astype(np.int64))
    return images, labels


def fashion(kind: str) -> tuple[Tensor, Tensor]:
    """Return images (N, 1, 28, 28) uint8 and labels (N,) int64. Raises SourceUnavailable.

    kind: `train` (60,000 images) or `t10k` (10,000).
    """
    for folder in FASHION_FOLDERS:
        images = _idx(folder.expanduser(), f"{kind}-images-idx3-ubyte")
        labels = _idx(folder.expanduser(), f"{kind}-labels-idx1-ubyte")
        if images is not None and labels is not None:
            return torch.from_numpy(images)[:, None], torch.from_numpy(labels.astype(np.int64))
    try:
        from torchvision.datasets import FashionMNIST

        dataset = FashionMNIST(str(Path("~/.cache/torchvision").expanduser()), train=kind == "train", download=True)
    except (RuntimeError, OSError) as error:
        raise SourceUnavailable(
            f"Fashion-MNIST is neither in {', '.join(str(folder) for folder in FASHION_FOLDERS)} nor could it be "
            f"downloaded ({str(error)[:200]}): on Debian, `apt install dataset-fashion-mnist` brings it"
        ) from None
    return dataset.data[:, None], dataset.targets.long()


def _idx(folder: Path, name: str) -> np.ndarray | None:
    """Read an IDX file (LeCun's format: two zero bytes, type, rank, big-endian sides, then the bytes), plain or gzipped."""
    plain, packed = folder / name, folder / f"{name}.gz"
    if plain.exists():
        data = plain.read_bytes()
    elif packed.exists():
        data = gzip.decompress(packed.read_bytes())
    else:
        return None
    rank = data[3]
    shape = np.frombuffer(data, ">u4", count=rank, offset=4).astype(np.int64)
    return np.frombuffer(data, np.uint8, offset=4 + 4 * rank).reshape(shape).copy()
