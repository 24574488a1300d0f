"""Attention in bf16 on the CPU: torch's flash kernel and the matmuls of `trainer.blocks.cpu_attention`.

Run from the repository's root: python tests/benchmarks/attention.py

Prints the least of `--rounds` times, forward and backward, in which both take turns, and their ratios.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))

import torch


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", type=int, nargs="*", default=[256, 512, 1024, 2560, 4608])
    parser.add_argument("--heads", type=int, default=12)
    parser.add_argument("--head-dim", type=int, default=128)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    from trainer.blocks.cpu_attention import MULTIPLIES_BF16, tiled_attention

    print(f"tiles are used on this processor: {'yes' if MULTIPLIES_BF16 else 'no'}")
    for tokens in options.tokens:
        shape = (1, tokens, options.heads, options.head_dim)
        inputs = [torch.randn(shape).bfloat16().requires_grad_() for _ in range(3)]
        kernels = {"flash": flash_attention, "tiles": lambda *tensors: tiled_attention(*tensors, None)}
        times: dict[str, list[tuple[float, float]]] = {name: [] for name in kernels}
        for _ in range(options.rounds):
            for name, kernel in kernels.items():
                times[name].append(seconds(kernel, inputs))
        flash, tiles = ([min(column) for column in zip(*times[name], strict=True)] for name in kernels)
        print(
            f"{tokens} tokens: flash {flash[0]:.4f} + {flash[1]:.4f} s, tiles {tiles[0]:.4f} + {tiles[1]:.4f} s, "
            f"ratios {tiles[0] / flash[0]:.2f} and {tiles[1] / flash[1]:.2f}",
            flush=True,
        )


def flash_attention(*tensors: torch.Tensor) -> torch.Tensor:
    """Attention of [B, L, H, D] tensors by torch's kernel."""
    return torch.nn.functional.scaled_dot_product_attention(*(tensor.transpose(1, 2) for tensor in tensors)).transpose(
        1, 2
    )


def seconds(kernel: Callable[..., torch.Tensor], inputs: list[torch.Tensor]) -> tuple[float, float]:
    """Time of a forward and of a backward pass."""
    start = time.perf_counter()
    output = kernel(*inputs)
    between = time.perf_counter()
    torch.autograd.grad(output, inputs, torch.ones_like(output))
    return between - start, time.perf_counter() - between


if __name__ == "__main__":
    main()
