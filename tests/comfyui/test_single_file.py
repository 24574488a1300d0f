"""Single files against ComfyUI's own models and loaders."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from diffusers import Flux2Transformer2DModel, FluxTransformer2DModel, QwenImageTransformer2DModel

from ..single_files import FLUX, FLUX_SIZES, FORMATS, KLEIN_SIZES, QWEN, stored, write
from ..trainer.klein_models import KLEIN_4B, KLEIN_9B
from ..trainer.plus_models import EDIT_2509, EDIT_2511
from .server import Server


@pytest.mark.parametrize("base_model", [FLUX, QWEN, EDIT_2509, EDIT_2511, KLEIN_4B, KLEIN_9B])
def test_a_full_size_file_has_every_key_of_comfyuis_model_and_no_other(server: Server, base_model: str) -> None:
    result = server.run({"layout": {"class_type": "OracleFullSizeLayout", "inputs": {"base_model": base_model}}})
    assert result.status == "execution_success", result.details
    report = json.loads(result.text("layout"))
    kinds = {FLUX: "Flux", KLEIN_4B: "Flux2", KLEIN_9B: "Flux2"}
    assert report["detected"] == kinds.get(base_model, "QwenImage"), report
    assert report["keys"] > (140 if "klein" in base_model else 700), report
    assert not report["missing"] and not report["left_over"] and not report["misfits"], report
    assert report["same_config"], report
    methods = {EDIT_2511: "index_timestep_zero", KLEIN_4B: "index", KLEIN_9B: "index"}
    assert report["method"] == methods.get(base_model), report


@pytest.fixture(scope="module")
def states() -> dict[str, dict[str, torch.Tensor]]:
    """Weights of one small model of each family: Qwen's width is fixed in ComfyUI."""
    torch.manual_seed(0)
    flux = FluxTransformer2DModel(**FLUX_SIZES)
    with torch.device("meta"):
        qwen = QwenImageTransformer2DModel(num_layers=1)
    qwen = qwen.to_empty(device="cpu")
    for name, parameter in qwen.named_parameters():
        torch.nn.init.constant_(parameter, 1.0) if "norm" in name else torch.nn.init.normal_(parameter, std=0.02)
    klein = Flux2Transformer2DModel(**KLEIN_SIZES)
    return {FLUX: stored(FLUX, flux), QWEN: stored(QWEN, qwen), KLEIN_4B: stored(KLEIN_4B, klein)}


def compared(server: Server, base_model: str, file: Path) -> dict:
    inputs = {"base_model": base_model, "file": str(file)}
    result = server.run({"file": {"class_type": "OracleSingleFile", "inputs": inputs}})
    assert result.status == "execution_success", result.details
    return json.loads(result.text("file"))


OPENED = [kind for kind in FORMATS if kind != "bf16, diffusion_model."]
"""ComfyUI knows no such prefix, other programs do."""
QWEN_KINDS = ("bf16, model.diffusion_model.", "fp8", "scaled fp8", "comfy_quant fp8", "int8 a row", "int8 rotated")
"""Its files are large: one of each mechanism."""


@pytest.mark.parametrize(
    ("base_model", "kind"),
    [*((small, kind) for small in (FLUX, KLEIN_4B) for kind in OPENED), *((QWEN, kind) for kind in QWEN_KINDS)],
)
def test_every_format_is_read_as_comfyui_reads_it(
    server: Server,
    version: tuple[int, int],
    states: dict[str, dict[str, torch.Tensor]],
    tmp_path: Path,
    base_model: str,
    kind: str,
) -> None:
    if version < (0, 33) and (base_model != QWEN or "int8" in kind or kind == "comfy_quant e5m2"):
        pytest.skip("ComfyUI before 0.33 opens neither a Flux of another width nor this format")
    report = compared(server, base_model, write(tmp_path / "file.safetensors", kind, states[base_model]))
    assert not report["weights"], report
    assert report["output"] <= 1e-4, report
