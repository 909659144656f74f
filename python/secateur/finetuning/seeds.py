"""Random numbers as a function of where a run stands: whoever goes on from step 700 draws what it always draws."""

from __future__ import annotations

import hashlib
import random
import sys

import torch


def mixed(*parts: object) -> int:
    """One seed, below 2^63, made of several values."""
    text = "/".join(map(str, parts)).encode()
    return int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "little") >> 1


def seed_all(seed: int) -> None:
    """Seed torch, Python, and NumPy where it is loaded.

    Not by torch.manual_seed: before CUDA is in use it leaves a seed for the time when it will be.
    """
    torch.default_generator.manual_seed(seed)
    if torch.cuda.is_available() and torch.cuda.is_initialized():
        torch.cuda.manual_seed_all(seed)
    random.seed(seed)
    numpy = sys.modules.get("numpy.random")
    if numpy is not None:
        numpy.seed(seed % 2**32)


def generator_of(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


__all__ = ["generator_of", "mixed", "seed_all"]
