"""Small random models of each architecture in diffusers' pipeline layout, and runs on small datasets."""

from __future__ import annotations

import io
import json
from collections.abc import Generator
from pathlib import Path
from random import Random
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from diffusers import (
    AutoencoderKL,
    AutoencoderKLQwenImage,
    FlowMatchEulerDiscreteScheduler,
    Flux2Transformer2DModel,
    FluxKontextPipeline,
    FluxTransformer2DModel,
    QwenImageEditPipeline,
    QwenImageTransformer2DModel,
)
from PIL import Image, ImageChops, ImageDraw
from safetensors.torch import load_file, save_file
from tokenizers import pre_tokenizers
from transformers import (
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTokenizer,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen2Tokenizer,
    T5Config,
    T5EncoderModel,
    T5TokenizerFast,
)

from trainer.config.request import FineTuneRequest, parse_request
from trainer.config.settings import parse_settings
from trainer.data.dataset import open_dataset
from trainer.data.hosts import ALLOW_VARIABLE
from trainer.events import Event, RunControl, drain
from trainer.memory.edit_session import EditSession
from trainer.models.edit_model import EditModel, open_model
from trainer.models.qwen_processor import ImageTextProcessor
from trainer.tiny.parts import write_parts
from trainer.training.loop import train

try:
    from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil
except ImportError:  # its name in the first versions of transformers 5
    from transformers.models.qwen2_vl.image_processing_qwen2_vl import Qwen2VLImageProcessor as Qwen2VLImageProcessorPil

SCHEDULE = {"shift": 3.0, "use_dynamic_shifting": True, "base_shift": 0.5, "max_shift": 1.15}
BYTES = sorted(pre_tokenizers.ByteLevel.alphabet())


@pytest.fixture(autouse=True)
def servers_of_this_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tests serve pictures themselves; those of private hosts turn this off."""
    monkeypatch.setenv(ALLOW_VARIABLE, "1")


@pytest.fixture(scope="session")
def kontext(tmp_path_factory: pytest.TempPathFactory) -> EditModel:
    torch.manual_seed(0)
    names = [*BYTES, *(f"{letter}</w>" for letter in BYTES), "<|startoftext|>", "<|endoftext|>"]
    pieces = [
        ("<pad>", 0.0),
        ("</s>", 0.0),
        ("<unk>", 0.0),
        ("\u2581", -2.0),
        *((letter, -3.0) for letter in "aeimnrstz"),
    ]
    clip = CLIPTextConfig(
        vocab_size=len(names),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=1,
        num_attention_heads=2,
        bos_token_id=len(names) - 2,
        eos_token_id=len(names) - 1,
    )
    t5 = T5Config(vocab_size=len(pieces), d_model=48, d_kv=16, d_ff=64, num_layers=1, num_heads=2)
    pipeline = FluxKontextPipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(**SCHEDULE),
        vae=AutoencoderKL(
            down_block_types=["DownEncoderBlock2D"] * 4,
            up_block_types=["UpDecoderBlock2D"] * 4,
            block_out_channels=[8] * 4,
            latent_channels=16,
            norm_num_groups=4,
            mid_block_add_attention=False,
            scaling_factor=0.3611,
            shift_factor=0.1159,
            use_quant_conv=False,
            use_post_quant_conv=False,
        ),
        text_encoder=CLIPTextModel(clip),
        tokenizer=CLIPTokenizer({name: i for i, name in enumerate(names)}, [], model_max_length=77),
        text_encoder_2=T5EncoderModel(t5),
        tokenizer_2=T5TokenizerFast(vocab=pieces, extra_ids=0, model_max_length=512),
        transformer=FluxTransformer2DModel(
            num_layers=2,
            num_single_layers=2,
            attention_head_dim=16,
            num_attention_heads=2,
            joint_attention_dim=48,
            pooled_projection_dim=32,
            guidance_embeds=True,
            axes_dims_rope=(4, 6, 6),
        ),
    )
    folder = tmp_path_factory.mktemp("kontext")
    pipeline.save_pretrained(folder)
    return open_model("tiny/flux-kontext", folder)


@pytest.fixture(scope="session")
def qwen(tmp_path_factory: pytest.TempPathFactory) -> EditModel:
    torch.manual_seed(0)
    special = [f"<|{name}|>" for name in ("im_start", "im_end", "vision_start", "vision_end", "image_pad", "video_pad")]
    tokenizer = Qwen2Tokenizer({letter: i for i, letter in enumerate(BYTES)}, [])
    tokenizer.add_special_tokens({"additional_special_tokens": special})
    ids = {
        f"{name}_token_id": tokenizer.convert_tokens_to_ids(f"<|{name}|>") for name in ("vision_start", "vision_end")
    }
    ids |= {f"{kind}_token_id": tokenizer.convert_tokens_to_ids(f"<|{kind}_pad|>") for kind in ("image", "video")}
    language = Qwen2_5_VLConfig(
        text_config={
            "vocab_size": len(tokenizer),
            "hidden_size": 48,
            "intermediate_size": 64,
            "num_hidden_layers": 1,
            "num_attention_heads": 2,
            "num_key_value_heads": 1,
            "max_position_embeddings": 4096,
            "rope_parameters": {"rope_type": "default", "rope_theta": 1e6, "mrope_section": [4, 4, 4]},
        },
        vision_config={
            "depth": 1,
            "hidden_size": 32,
            "intermediate_size": 32,
            "num_heads": 2,
            "out_hidden_size": 48,
            "fullatt_block_indexes": [0],
        },
        **ids,
    )
    statistics = torch.linspace(-1, 1, 16)
    pipeline = QwenImageEditPipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(**SCHEDULE),
        vae=AutoencoderKLQwenImage(
            base_dim=4,
            dim_mult=[1, 1, 1, 1],
            z_dim=16,
            num_res_blocks=1,
            latents_mean=statistics.tolist(),
            latents_std=(statistics + 2).tolist(),
        ),
        text_encoder=Qwen2_5_VLForConditionalGeneration(language),
        tokenizer=tokenizer,
        processor=ImageTextProcessor(Qwen2VLImageProcessorPil(), tokenizer),
        transformer=QwenImageTransformer2DModel(
            num_layers=2,
            attention_head_dim=16,
            num_attention_heads=2,
            joint_attention_dim=48,
            axes_dims_rope=(4, 6, 6),
        ),
    )
    folder = tmp_path_factory.mktemp("qwen")
    pipeline.save_pretrained(folder)
    return open_model("tiny/qwen-image-edit", folder)


@pytest.fixture(scope="session")
def klein(tmp_path_factory: pytest.TempPathFactory) -> EditModel:
    folder = tmp_path_factory.mktemp("klein")
    write_parts("flux2-klein", folder, seed=1)
    config = json.loads((folder / "transformer" / "config.json").read_text(encoding="utf-8"))
    torch.manual_seed(0)
    sizes = {"num_layers": 2, "num_single_layers": 2, "attention_head_dim": 32, "axes_dims_rope": (8, 8, 8, 8)}
    Flux2Transformer2DModel.from_config(config | sizes).save_pretrained(folder / "transformer")
    vae = folder / "vae" / "diffusion_pytorch_model.safetensors"
    tensors = load_file(vae)
    tensors["decoder.conv_out.weight"] *= 8  # so that images differ visibly
    save_file(tensors, vae, {"format": "pt"})
    return open_model("tiny/flux2-klein", folder)


def shape_picture(seed: int, size: tuple[int, int] = (64, 64)) -> Image.Image:
    """A plain background with one rectangle, different for every seed."""
    random = Random(seed)
    picture = Image.new("RGB", size, tuple(random.randrange(256) for _ in range(3)))
    width, height = size
    left, top = random.randrange(width // 2), random.randrange(height // 2)
    color = tuple(random.randrange(256) for _ in range(3))
    ImageDraw.Draw(picture).rectangle((left, top, left + width // 3, top + height // 3), fill=color)
    return picture


def png(picture: Image.Image) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, "PNG")
    return buffer.getvalue()


class Runs:
    """Makes datasets and runs in a temporary folder, as the command line does."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.parquet = folder / "pairs.parquet"
        self.cache = folder / "cache"

    def write(self, pairs: int = 6, captions: list[str] | None = None, size: tuple[int, int] = (64, 64)) -> Path:
        """A parquet of `pairs` rows with pictures inside; the target is the control inverted."""
        controls = [shape_picture(seed, size) for seed in range(pairs)]
        columns = {
            "before": [png(control) for control in controls],
            "words": captions or [f"pair number {'one ' * (number % 3)}{number}" for number in range(pairs)],
            "after": [png(ImageChops.invert(control)) for control in controls],
        }
        pq.write_table(pa.table(columns), self.parquet)
        return self.parquet

    def request(self, model: EditModel, **params: Any) -> FineTuneRequest:
        """A request of few steps on the parquet."""
        columns = {"caption_column": "words", "control_image_column": "before", "image_column": "after"}
        params = columns | {"steps": 4, "sample_every": 2, "lora_rank": 4, "lora_alpha": 4, "samples": []} | params
        return parse_request(
            {
                "resource": str(self.parquet),
                "base_model": model.base_model,
                "script_type": "image_editing",
                "training_params": params,
            }
        )

    def events(
        self,
        model: EditModel,
        name: str = "run",
        settings: dict | None = None,
        control: RunControl | None = None,
        session: EditSession | None = None,
        **params,
    ) -> Generator[Event, None, None]:
        """The events of a run; parameters of the request by keyword."""
        if not self.parquet.exists():
            self.write()
        request, options = self.request(model, **params), parse_settings({"sample_steps": 2} | (settings or {}))
        dataset = drain(
            open_dataset(
                self.parquet,
                request.training_params.columns,
                images_root=options.images_root,
                bad_rows=options.bad_rows,
            )
        )
        return train(
            request,
            dataset,
            model,
            options,
            run_dir=self.folder / name,
            cache_dir=self.cache,
            control=control,
            session=session,
        )

    def run(self, model: EditModel, name: str = "run", **rest: Any) -> list[Event]:
        """All events of a run to its end."""
        return list(self.events(model, name, **rest))

    def losses(self, name: str = "run") -> list[float]:
        """The losses of a run's log, in order."""
        lines = [json.loads(line) for line in (self.folder / name / "log.jsonl").read_text().splitlines()]
        return [line["loss"] for line in lines if line["event"] == "step"]

    def weights(self, name: str = "run") -> dict[str, torch.Tensor]:
        """The exported weights of a finished run."""
        (file,) = (self.folder / name).glob("*.safetensors")
        return load_file(file)


@pytest.fixture
def runs(tmp_path: Path) -> Runs:
    return Runs(tmp_path)


@pytest.fixture(params=["kontext", "qwen", "klein"])
def model(request: pytest.FixtureRequest) -> EditModel:
    """A family of each architecture in turn."""
    return request.getfixturevalue(request.param)
