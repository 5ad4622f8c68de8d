"""Every random draw is a pure function of (seed, purpose, index): resuming restores no generator at all."""

import hashlib

import torch
from torch import Tensor


def key(seed: int, purpose: str, index: int = 0) -> int:
    """Return a 63-bit seed, independent for each purpose and index."""
    digest = hashlib.blake2b(f"{seed}/{purpose}/{index}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1


def generator(seed: int, purpose: str, index: int = 0) -> torch.Generator:
    """Return a CPU generator (the draws are small and must not depend on the device)."""
    return torch.Generator().manual_seed(key(seed, purpose, index))


def permutation(count: int, seed: int, purpose: str, index: int = 0) -> Tensor:
    """Return a random order of range(count), (count,) int64."""
    return torch.randperm(count, generator=generator(seed, purpose, index))
