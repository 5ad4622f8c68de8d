"""Every random draw is a pure function of (seed, purpose, index): resuming restores no generator at all."""

import hashlib

import torch
from torch import Tensor


def key(seed: int, purpose: str, index: int = 0) -> int:
    """Return a 63-bit seed for a purpose and index, by a hash of all three; torch's generator of the CPU uses its lower 32."""
    digest = hashlib.blake2b(f"{seed}/{purpose}/{index}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1


def generator(seed: int, purpose: str, index: int = 0) -> torch.Generator:
    """Return a CPU generator (the draws are small and must not depend on the device)."""
    return torch.Generator().manual_seed(key(seed, purpose, index))


def permutation(count: int, seed: int, purpose: str, index: int = 0) -> Tensor:
    """Return a random order of range(count), (count,) int64."""
    return torch.randperm(count, generator=generator(seed, purpose, index))


def seed_torch(seed: int, device: torch.device) -> None:
    """Seed torch's own generators, of the CPU and of the device, for draws that cannot be given one.

    `torch.manual_seed` asks every kind of accelerator that torch knows, and takes half a millisecond of each step for it.
    """
    torch.default_generator.manual_seed(seed)
    if device.type == "cuda":
        torch.cuda.manual_seed_all(seed)
