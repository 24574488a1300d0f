"""Converts LoRA files of other programs to the portable form of `adapter.py`.

One table serves all formats: a transformer's modules under diffusers' and the single file's names, with dots or
underscores. The keys of kohya, ComfyUI, PEFT and diffusers differ only in prefix and suffix.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from ..errors import BadInput
from ..families.registry import FAMILIES
from ..single_file.key_mapping import swapped_halves
from .scales import PREFIX, file_scales

if TYPE_CHECKING:
    from ..models.family import Family


State = Mapping[str, torch.Tensor]


PREFIXES = (
    "base_model.model.",
    "model.diffusion_model.",
    "diffusion_model.",
    PREFIX,
    "lora_unet_",
    "lora_transformer_",
    "lycoris_",
)


_TEXT_ENCODER = re.compile(r"(lora_(prior_)?te\d*_|(base_model\.model\.)?text_encoders?(_\d)?\.|bundle_emb\.)")
"""Tensors for text encoders, embeddings of new words (textual inversion) among them."""


_ENTRY = re.compile(
    r"(?P<module>.+?)"
    r"(\.lora_(?P<half>A|B|down|up)(\.default(_\d+)?)?(\.weight)?"
    r"|[._]lora(_linear_layer)?\.(?P<old_half>down|up)\.weight"
    r"|\.(?P<alpha>alpha))"
)


_MATRIX = {"down": "A", "up": "B"}


_DIFFERENCE = re.compile(r"\.(diff|diff_b|set_weight|w_norm|b_norm)$")


_REFUSED = (
    (re.compile(r"dora_scale|lora_magnitude_vector"), "DoRA"),
    (re.compile(r"\.hada_(w|t)"), "LoHa"),
    (re.compile(r"\.lokr_(w|t)"), "LoKr"),
    (re.compile(r"\.oft_|\.boft_"), "OFT"),
    (re.compile(r"\.(a1|a2|b1|b2|bm1|bm2)\.weight$"), "GLoRA"),
    (re.compile(r"\.lora_mid\.|\.reshape_weight$"), "LoRA of convolutions or of other shapes"),
    (re.compile(r"\.lora_(B|up)(\.\w+)?\.bias$"), "biases beside the matrices"),
    (_DIFFERENCE, "differences of whole weights or biases (diff)"),
)


_OTHER_MODELS = (
    (r"(input|output|middle|down|up|mid)_blocks?[._]", "Stable Diffusion 1.5, 2 or XL"),
    (r"joint_blocks[._]", "Stable Diffusion 3"),
    (r"double_stream_modulation|to_qkv_mlp_proj", "FLUX.2"),
    (r"double_blocks\.\d+\.(img|txt)_attn_qkv", "HunyuanVideo"),
    (r"distilled_guidance_layer", "Chroma"),
    (r"(^|[._])blocks[._]\d+[._](self_attn|cross_attn)[._]", "a video model such as Wan"),
    (r"(^|[._])layers[._]\d+[._](attention|feed_forward)[._]", "Z-Image or Lumina"),
)


@dataclass(frozen=True, slots=True)
class Target:
    """The transformer's linear layers behind a module name of a file: one, or several fused."""

    modules: tuple[str, ...]
    """diffusers' names, in the order of the rows."""
    rows: tuple[int, ...]
    """Out features of each."""
    columns: int
    """In features."""
    swapped: bool
    """True if the file stores the second half of the rows first."""


def to_portable(
    state: State, family: Family, transformer: torch.nn.Module, what: str, metadata: Mapping[str, str] | None = None
) -> dict[str, torch.Tensor]:
    """Convert the tensors of any LoRA file, of any float dtype, to `transformer.<module>.lora_A.weight` [rank, in] and
    `.lora_B.weight` [out, rank] float32 with alpha / rank folded into B; tensors of text encoders are dropped.

    The transformer may be on the meta device. `metadata` is from the file's header, `what` names the file in messages.
    Raises BadInput for anything but a plain LoRA of this transformer.
    """
    entries = _entries(state, what)
    targets = linear_targets(family, transformer)
    _check_model(entries, targets, family, what)
    _check_kind(state, what)
    scales = file_scales(metadata or {}, what)
    portable: dict[str, torch.Tensor] = {}
    for module, entry in entries.items():
        target = targets[module]
        a, b = _matrices(module, entry, target, what)
        rank = a.shape[0]
        alpha = entry.get("alpha")
        scale = scales.of(target.modules[0], rank) if alpha is None else alpha.float().item() / rank
        b = swapped_halves(b) if target.swapped else b
        b = b * scale
        if not b.isfinite().all():
            raise BadInput(f"{what} is damaged: {module} times its scale {scale:g} is no finite number.")
        for name, part in zip(target.modules, b.split(target.rows), strict=True):
            if f"{PREFIX}{name}.lora_A.weight" in portable:
                raise BadInput(f"{what} has two LoRAs for {name}; use a file with one.")
            own_a, own_b = _own_rank(a, part) if len(target.modules) > 1 else (a, part)
            portable |= {f"{PREFIX}{name}.lora_A.weight": own_a, f"{PREFIX}{name}.lora_B.weight": own_b}
    return portable


def count_text_encoder_tensors(names: Iterable[str]) -> int:
    """Number of a LoRA file's tensors that belong to text encoders."""
    return sum(1 for name in names if _TEXT_ENCODER.match(name))


def linear_targets(family: Family, transformer: torch.nn.Module) -> dict[str, Target]:
    """The transformer's linear layers by every name that files use, with dots and with underscores."""
    linears = {name: m for name, m in transformer.named_modules() if isinstance(m, torch.nn.Linear)}
    targets = {name: _target((name,), linears) for name in linears}
    for fused in family.layout(transformer):
        if all(name in linears for name in fused.modules):
            targets[fused.stored] = _target(fused.modules, linears, fused.swapped)
    return targets | {name.replace(".", "_"): target for name, target in targets.items()}


def _target(names: tuple[str, ...], linears: Mapping[str, torch.nn.Linear], swapped: bool = False) -> Target:
    rows = tuple(linears[name].out_features for name in names)
    return Target(names, rows, linears[names[0]].in_features, swapped)


def _entries(state: State, what: str) -> dict[str, dict[str, torch.Tensor]]:
    """Tensors by module name without prefix, then by role: `A`, `B` and, if present, `alpha`."""
    entries: dict[str, dict[str, torch.Tensor]] = {}
    unknown = []
    for name, tensor in state.items():
        if _TEXT_ENCODER.match(name) or any(pattern.search(name) for pattern, _ in _REFUSED):
            continue
        match = _ENTRY.fullmatch(name)
        if match is None:
            unknown.append(name)
            continue
        half = match["half"] or match["old_half"] or "alpha"
        entry = entries.setdefault(_without_prefix(match["module"]), {})
        half = _MATRIX.get(half, half)
        if not tensor.is_floating_point() and half != "alpha":
            raise BadInput(
                f"{what} has whole numbers in {name} ({str(tensor.dtype).removeprefix('torch.')}), as quantized files "
                "do; use a file in bf16, fp16 or fp32."
            )
        if not tensor.float().isfinite().all():
            raise BadInput(
                f"{what} is damaged or was made by a training that failed: {name} has values that are not "
                "finite numbers (NaN or infinity)."
            )
        if half in entry:
            raise BadInput(f"{what} has {name} twice under different names; use a file that has it once.")
        entry[half] = tensor
    if unknown or not entries:
        _check_kind(state, what)
        example = next(iter(unknown or state), "none")
        only = "only parts for text encoders" if count_text_encoder_tensors(state) else f"{len(state)} tensors"
        raise BadInput(
            f"{what} is not a LoRA of a transformer in a known form (pairs of <module>.lora_A and .lora_B, or "
            f".lora_down and .lora_up): it has {only} such as {example!r}."
        )
    return entries


def _without_prefix(name: str) -> str:
    while prefix := next((prefix for prefix in PREFIXES if name.startswith(prefix)), None):
        name = name.removeprefix(prefix)
    return name


def _check_model(modules: Collection[str], targets: Mapping[str, Target], family: Family, what: str) -> None:
    """Raise BadInput for modules that the transformer does not have, naming their model where it is known."""
    strange = [module for module in modules if module not in targets]
    if not strange:
        return
    expected = family.info.lora_title
    known = [*_OTHER_MODELS, *((info.lora_modules, info.lora_title) for info in FAMILIES)]
    title = next((title for pattern, title in known if any(re.search(pattern, module) for module in strange)), None)
    described = f"a LoRA of {title}" if title and title != expected else "a LoRA"
    raise BadInput(
        f"{what} was made for another model: it is {described} with {len(strange)} of {len(modules)} modules, such as "
        f"{strange[0]!r}, that this transformer of {family.info.name} does not have; a LoRA of {expected} is expected."
    )


def _check_kind(state: State, what: str) -> None:
    """Raise BadInput for tensors of anything but plain LoRA; weight differences that are all zero are accepted."""
    for pattern, kind in _REFUSED:
        names = [name for name in state if pattern.search(name) and not _TEXT_ENCODER.match(name)]
        if pattern is _DIFFERENCE:
            names = [name for name in names if state[name].float().any()]
        if names:
            raise BadInput(
                f"{what} cannot be used: it holds {kind} ({len(names)} tensors such as {names[0]!r}), and only plain "
                "LoRA is supported."
            )


def _matrices(
    module: str, entry: Mapping[str, torch.Tensor], target: Target, what: str
) -> tuple[torch.Tensor, torch.Tensor]:
    """A [rank, in] and B [out, rank] in float32, with checked shapes."""
    missing = [half for half in ("A", "B") if half not in entry]
    if missing:
        raise BadInput(f"{what} is an incomplete LoRA: {module} lacks its matrix {' and '.join(missing)}.")
    a, b = entry["A"], entry["B"]
    if a.dim() == 4 or b.dim() == 4:
        raise BadInput(f"{what} cannot be used: {module} is a LoRA of a convolution, and only linear layers have one.")
    rank = a.shape[0] if a.dim() == 2 else 0
    expected = (rank, target.columns), (sum(target.rows), rank)
    if not rank or (tuple(a.shape), tuple(b.shape)) != expected:
        raise BadInput(
            f"{what} was made for another model: {module} has A {tuple(a.shape)} and B {tuple(b.shape)}, where this "
            f"transformer's layer takes {target.columns} and gives {sum(target.rows)} features."
        )
    if "alpha" in entry and entry["alpha"].numel() != 1:
        raise BadInput(f"{what} is damaged: the alpha of {module} is not one number.")
    return a.float(), b.float()


def _own_rank(a: torch.Tensor, b: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Drop the rank rows of A and columns of B that are zero for one module of a fused one: LoRAs of single modules are
    fused block by block, and B is zero outside a module's own block."""
    used = b.ne(0).any(dim=0)
    if not used.any():
        used[0] = True
    return (a, b) if used.all() else (a[used], b[:, used])
