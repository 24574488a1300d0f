"""Random generators addressed by purpose and place, instead of one global state."""

from __future__ import annotations

import hashlib

import torch


def example_generator(seed: int, purpose: str, *address: int) -> torch.Generator:
    """Return a CPU generator for an address such as (seed, "noise", epoch, row).

    Equal addresses give equal numbers in every process, batch split, prefetch order and resumed run.
    """
    return torch.Generator("cpu").manual_seed(address_number(seed, purpose, *address))


def address_number(seed: int, purpose: str, *address: int) -> int:
    """Return a pseudo-random number of 63 bits that depends on the address alone."""
    text = "/".join([str(seed), purpose, *map(str, address)])
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big") & (2**63 - 1)
