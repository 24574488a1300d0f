from __future__ import annotations

import hashlib

import torch


def example_generator(seed: int, purpose: str, *address: int) -> torch.Generator:
    """A CPU generator addressed by what it is for, say (seed, "noise", epoch, example).

    The same address gives the same numbers in every process, batch split, prefetch order and resumed run.
    """
    text = "/".join([str(seed), purpose, *map(str, address)])
    number = int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big")
    return torch.Generator("cpu").manual_seed(number & (2**63 - 1))
