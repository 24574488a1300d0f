"""One LoRA, written as the programs that people train with write it."""

from __future__ import annotations

import torch

from trainer.models.family import Family

RANK, ALPHA = 4, 8.0
Tensors = dict[str, torch.Tensor]
Pairs = dict[str, tuple[torch.Tensor, torch.Tensor]]


def random_pairs(transformer: torch.nn.Module, targets: str | None = None, rank: int = RANK) -> Pairs:
    """A and B of every linear layer, or of those that match, with the scale in B."""
    import re

    generator = torch.Generator().manual_seed(5)
    return {
        name: (
            torch.randn(rank, module.in_features, generator=generator) * 0.2,
            torch.randn(module.out_features, rank, generator=generator) * 0.2,
        )
        for name, module in transformer.named_modules()
        if isinstance(module, torch.nn.Linear) and (targets is None or re.fullmatch(targets, name))
    }


def portable(pairs: Pairs, prefix: str = "transformer.", suffix: str = ".weight") -> Tensors:
    return {
        f"{prefix}{name}.lora_{half}{suffix}": tensor
        for name, pair in pairs.items()
        for half, tensor in zip("AB", pair, strict=True)
    }


def launched_processes(pairs: Pairs, family: Family, transformer: torch.nn.Module) -> Pairs:
    """The same under the single file's names: parts of a joined module stand block by block."""
    result: Pairs = {}
    for stack in family.layout(transformer):
        if any(name in pairs for name in stack.modules):
            components = [pairs[name] for name in stack.modules]
            b = torch.block_diag(*(b for _, b in components))
            b = torch.cat(b.chunk(2)[::-1]) if stack.swapped else b
            result[stack.stored] = (torch.cat([a for a, _ in components]), b)
    return result


def kohya(pairs: Pairs, prefix: str = "lora_unet_", flat: bool = True, names: str = "lora_{}.weight") -> Tensors:
    """down, up and an alpha of twice the rank, which is divided out of up."""
    result: Tensors = {}
    for name, (a, b) in pairs.items():
        key = prefix + (name.replace(".", "_") if flat else name)
        result[f"{key}.{names.format('down')}"] = a
        result[f"{key}.{names.format('up')}"] = b / 2
        result[f"{key}.alpha"] = torch.tensor(2.0 * a.shape[0])
    return result


def every_format(pairs: Pairs, family: Family, transformer: torch.nn.Module) -> dict[str, Tensors]:
    stored = launched_processes(pairs, family, transformer)
    return {
        "ours": portable(pairs),
        "bare": portable(pairs, ""),
        "peft": portable(pairs, "base_model.model."),
        "raw peft": portable(pairs, suffix=".default.weight"),
        "no weight": portable(pairs, "", suffix=""),
        "kohya": kohya(stored),
        "comfyui": kohya(stored, "diffusion_model.", flat=False),
        "checkpoint": kohya(stored, "model.diffusion_model.", flat=False),
        "file's names": portable(stored, "diffusion_model."),
        "file's names, peft": portable(stored, "base_model.model."),
        "onetrainer": kohya(pairs, "lora_transformer_"),
        "lycoris": kohya(pairs, "lycoris_"),
        "dotted with alpha": kohya(pairs, "transformer.", flat=False),
        "old diffusers": kohya(pairs, "transformer.", flat=False, names="lora.{}.weight"),
    }
