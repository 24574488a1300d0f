"""Reading weights files safely, the full fine-tune's weights, and number formats."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from .errors import BadInput
from .files import remove, replacing, write_tensors
from .models.layout import Layout, to_stored
from .models.quantized_linear import dequantize_layers
from .sharding import whole

if TYPE_CHECKING:
    from diffusers import ModelMixin

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


class FullTransformer:
    """All of a transformer's weights, trained."""

    def __init__(
        self, transformer: ModelMixin, layout: Layout, with_folder: bool = False, dtype: torch.dtype = torch.float32
    ) -> None:
        """`layout` is that of the file that it is exported to; `with_folder` writes diffusers' folder beside it. The
        weights are held in `dtype`."""
        dequantize_layers(transformer, dtype)
        transformer.to(dtype=dtype).requires_grad_(True)
        self.transformer = transformer
        self.layout = layout
        self.with_folder = with_folder
        self.writes = True
        """Of several processes that share the weights out, `export` is called by all and written by one."""
        self.parameters: dict[str, torch.nn.Parameter] = dict(transformer.named_parameters())

    def export(self, path: Path, dtype: torch.dtype, metadata: Mapping[str, str]) -> None:
        """Write the whole transformer as ComfyUI's single files hold it, and where that is wanted as diffusers loads
        it, in `<path without ending>/transformer`. Raises RunFailed when the disk refuses."""
        state = {name: whole(parameter.detach()).to("cpu", dtype) for name, parameter in self.parameters.items()}
        if not self.writes:
            return
        if self.with_folder:
            self._export_folder(path.with_suffix(""), state)
        write_tensors(path, dict(to_stored(self.layout, state)), metadata)

    def _export_folder(self, folder: Path, state: Mapping[str, torch.Tensor]) -> None:
        from huggingface_hub import save_torch_state_dict

        remove(folder)
        with replacing(folder) as temporary:
            part = temporary / "transformer"
            self.transformer.save_config(part)
            save_torch_state_dict(dict(state), part, filename_pattern="diffusion_pytorch_model{suffix}.safetensors")

    @contextmanager
    def exported_values(self, dtype: torch.dtype) -> Iterator[None]:
        """Inside, the transformer has the values of the exported file."""
        with swapped_values(self.parameters, {name: p.detach().to(dtype) for name, p in self.parameters.items()}):
            yield


@contextmanager
def swapped_values(parameters: Mapping[str, torch.nn.Parameter], values: Mapping[str, torch.Tensor]) -> Iterator[None]:
    """Inside, the parameters hold `values`; afterwards what they held before, bit for bit."""
    kept = {name: parameter.detach().clone() for name, parameter in parameters.items()}
    copy_values(parameters, values)
    try:
        yield
    finally:
        copy_values(parameters, kept)


def copy_values(parameters: Mapping[str, torch.nn.Parameter], values: Mapping[str, torch.Tensor]) -> None:
    """Copy named tensors into the parameters. Raises KeyError for a name that is missing."""
    with torch.no_grad():
        for name, parameter in parameters.items():
            parameter.copy_(values[name])


def load_tensors(path: Path) -> dict[str, torch.Tensor]:
    """All tensors of a safetensors file, on the CPU and in memory of their own: the library's share the file's, which
    Windows then does not let go of. Raises OSError and SafetensorError."""
    from safetensors.torch import load_file

    return {name: tensor.clone() for name, tensor in load_file(path).items()}


def read_weights(path: Path, what: str) -> dict[str, torch.Tensor]:
    """All tensors of a safetensors file, on the CPU. Raises BadInput when it cannot be read."""
    from safetensors import SafetensorError

    try:
        return load_tensors(path)
    except FileNotFoundError:
        raise BadInput(f"The {what} {path} does not exist.") from None
    except OSError as error:
        raise BadInput(f"Cannot read the {what} {path}: {error.strerror or error}.") from error
    except SafetensorError as error:
        raise BadInput(f"The {what} {path} is not a readable safetensors file: {error}.") from None
