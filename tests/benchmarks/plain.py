"""The same training in plain diffusers and peft, as diffusers' Kontext example script does it; for `peers.py`.

In the order of that script: every image through the VAE and every caption through the text encoders one by one, the
results kept in memory; the LoRA added with peft; each step noises, packs, predicts, unpacks, takes the mean square in
float32, clips and steps AdamW; samples are drawn by a FluxKontextPipeline.
"""

from __future__ import annotations

import io
import time
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import torch
from diffusers import FluxKontextPipeline
from peft import LoraConfig
from PIL import Image

SCHEDULE = 1000
FLAGS = "--cache_latents --rank {rank} --train_batch_size 1 --guidance_scale 1 --optimizer adamw{checkpointing}"
"""The example script's flags that this does the work of; captions are encoded once, as it does without being asked."""

MATMULS_AND_ATTENTION = ("aten::mm", "aten::addmm", "aten::bmm", "aten::baddbmm", "aten::_scaled_dot_product")


class PlainTraining:
    """One training, in the steps in which it is timed."""

    def __init__(self, folder: Path, targets: str, rank: int, checkpointing: bool, dtype: torch.dtype) -> None:
        self.dtype = dtype
        self.pipeline = FluxKontextPipeline.from_pretrained(folder, torch_dtype=dtype, local_files_only=True)
        self.pipeline.set_progress_bar_config(disable=True)
        self.transformer = self.pipeline.transformer
        self.transformer.requires_grad_(False)
        if checkpointing:
            self.transformer.enable_gradient_checkpointing()
        config = LoraConfig(r=rank, lora_alpha=rank, init_lora_weights="gaussian", target_modules=targets)
        self.transformer.add_adapter(config)
        self.trained = [parameter for parameter in self.transformer.parameters() if parameter.requires_grad]
        for parameter in self.trained:
            parameter.data = parameter.data.float()
        self.optimizer = torch.optim.AdamW(self.trained, lr=1e-4, weight_decay=0.01)

    @torch.no_grad()
    def cache(self, parquet: Path, size: int) -> None:
        """Encode all pairs and captions."""
        self.pairs, self.captions = [], []
        for row in pq.read_table(parquet).to_pylist():
            clean, control = (self._encode(row[column], size) for column in ("target", "control"))
            self.pairs.append((clean, control))
            prompt, pooled, ids = self.pipeline.encode_prompt(row["caption"], device="cpu", max_sequence_length=512)
            self.captions.append((prompt, pooled, ids))

    def _encode(self, data: bytes, size: int) -> torch.Tensor:
        image = Image.open(io.BytesIO(data)).convert("RGB").resize((size, size), Image.Resampling.LANCZOS)
        pixels = torch.from_numpy(np.asarray(image, dtype=np.float32) / 127.5 - 1).permute(2, 0, 1)[None]
        config = self.pipeline.vae.config
        latents = self.pipeline.vae.encode(pixels.to(self.dtype)).latent_dist.mode()
        return (latents - config.shift_factor) * config.scaling_factor

    def step(self, number: int) -> float:
        """One step; the loss."""
        loss = self.loss(number)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.trained, 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad()
        return loss.item()

    def loss(self, number: int) -> torch.Tensor:
        """Forward."""
        clean, control = self.pairs[number % len(self.pairs)]
        prompt, pooled, text_ids = self.captions[number % len(self.captions)]
        noise = torch.randn_like(clean)
        timestep = torch.rand(1) * SCHEDULE
        sigma = (timestep / SCHEDULE).to(self.dtype).view(1, 1, 1, 1)
        noisy = (1 - sigma) * clean + sigma * noise
        packed, height, width = self._pack(noisy)
        ids = [self.pipeline._prepare_latent_image_ids(1, height, width, "cpu", self.dtype) for _ in range(2)]
        ids[1][..., 0] = 1
        guidance = torch.ones(1) if self.transformer.config.guidance_embeds else None
        with torch.autocast("cpu", self.dtype, enabled=self.dtype != torch.float32):
            velocity = self.transformer(
                hidden_states=torch.cat([packed, self._pack(control)[0]], dim=1),
                timestep=timestep / SCHEDULE,
                guidance=guidance,
                pooled_projections=pooled,
                encoder_hidden_states=prompt,
                txt_ids=text_ids,
                img_ids=torch.cat(ids),
                return_dict=False,
            )[0][:, : packed.shape[1]]
        velocity = self.pipeline._unpack_latents(velocity, 16 * height, 16 * width, 8)
        return ((velocity.float() - (noise - clean).float()) ** 2).mean()

    def _pack(self, latents: torch.Tensor) -> tuple[torch.Tensor, int, int]:
        batch, channels, height, width = latents.shape
        packed = self.pipeline._pack_latents(latents, batch, channels, height, width)
        return packed, height // 2, width // 2

    def sample(self, parquet: Path, size: int, steps: int) -> None:
        """Draw the first control image's edit."""
        row = pq.read_table(parquet).slice(0, 1).to_pylist()[0]
        control = Image.open(io.BytesIO(row["control"])).convert("RGB")
        generator = torch.Generator().manual_seed(42)
        with torch.autocast("cpu", self.dtype, enabled=self.dtype != torch.float32):
            self.pipeline(
                image=control,
                prompt=row["caption"],
                height=size,
                width=size,
                max_area=size * size,
                _auto_resize=False,
                num_inference_steps=steps,
                generator=generator,
            )

    def save(self, folder: Path) -> None:
        """The LoRA's file."""
        from peft import get_peft_model_state_dict

        FluxKontextPipeline.save_lora_weights(
            folder, transformer_lora_layers=get_peft_model_state_dict(self.transformer)
        )


def matmul_share(training: PlainTraining) -> float:
    """Share of a step after a warm-up that torch's profiler finds in matmuls and attention."""
    from torch.profiler import ProfilerActivity, profile

    training.step(0)
    with profile(activities=[ProfilerActivity.CPU]) as profiler:
        training.step(1)
    times = {event.key: event.self_cpu_time_total for event in profiler.key_averages()}
    return sum(time for name, time in times.items() if name.startswith(MATMULS_AND_ATTENTION)) / sum(times.values())


def run_plain(
    folder: Path,
    parquet: Path,
    out: Path,
    targets: str,
    rank: int,
    checkpointing: bool,
    size: int,
    steps: int,
    sample_steps: int,
    dtype: torch.dtype,
) -> dict[str, object]:
    """Seconds of every phase."""
    flags = FLAGS.format(rank=rank, checkpointing=" --gradient_checkpointing" if checkpointing else "")
    clock = Clock()
    training = PlainTraining(folder, targets, rank, checkpointing, dtype)
    clock.lap("load")
    training.cache(parquet, size)
    clock.lap("cache")
    if sample_steps:
        training.sample(parquet, size, sample_steps)
        clock.lap("first sampling")
    for number in range(steps):
        training.step(number)
        clock.lap("step")
    if sample_steps:
        training.sample(parquet, size, sample_steps)
        clock.lap("last sampling")
    training.save(out)
    clock.lap("save")
    return {"flags": flags, "seconds": clock.laps}


class Clock:
    """Seconds of laps by name."""

    def __init__(self) -> None:
        self.laps: dict[str, list[float]] = {}
        self._last = time.perf_counter()

    def lap(self, name: str) -> None:
        """What came since the last lap was this."""
        now = time.perf_counter()
        self.laps.setdefault(name, []).append(round(now - self._last, 4))
        self._last = now
