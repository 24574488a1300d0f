"""Prompts in ComfyUI's API format."""

from __future__ import annotations

from typing import Any

Prompt = dict[str, Any]

EXAMPLE = {
    "resource": "edit_trainer_example.parquet",
    "caption_column": "caption",
    "control_image_column": "control",
    "image_column": "target",
    "images_root": "",
    "bad_rows": "stop",
}
PARAMS = {
    "batch_size": 1,
    "cache_text_embeddings": False,
    "gradient_accumulation": 1,
    "learning_rate": 0.001,
    "lora_alpha": 4,
    "lora_rank": 4,
    "sample_every": 4,
    "sample_height": 64,
    "sample_width": 64,
    "steps": 4,
    "timestep_type": "weighted",
    "use_lora": True,
}
SETTINGS = {
    "resolution": 0,
    "control_resolution": "inference",
    "conditioning": "auto",
    "precision": "auto",
    "offload": "auto",
    "gradient_checkpointing": "auto",
    "compile": "auto",
    "lora_targets": "attention",
    "optimizer": "adamw",
    "weight_decay": 0.01,
    "max_grad_norm": 1.0,
    "lr_scheduler": "constant",
    "warmup_steps": 0,
    "caption_dropout": 0.0,
    "training_guidance": 1.0,
    "sample_steps": 2,
    "sample_guidance": 0.0,
    "sample_seed": 42,
    "checkpoint_every": 0,
    "keep_checkpoints": 3,
    "save_dtype": "fp32",
}


def node(class_type: str, /, **inputs: Any) -> dict[str, Any]:
    """One node; a link is `[node id, output index]`."""
    return {"class_type": class_type, "inputs": inputs}


def training(
    base_model: str = "tiny/flux-kontext",
    run_name: str = "run",
    dataset: dict[str, Any] | None = None,
    params: dict[str, Any] | None = None,
    settings: dict[str, Any] | None = None,
    **train: Any,
) -> Prompt:
    """A training with one sample prompt; only what differs from the defaults above is given."""
    return {
        "dataset": node("EditTrainerLoadDataset", **EXAMPLE | (dataset or {})),
        "params": node("EditTrainerParams", **PARAMS | (params or {})),
        "sample": node("EditTrainerSample", prompt="add a red frame", ctrl_img_url=""),
        "model": node("EditTrainerBaseModel", base_model=base_model, transformer="auto"),
        "settings": node("EditTrainerSettings", **SETTINGS | (settings or {})),
        "train": node(
            "EditTrainerTrain",
            **{
                "model": ["model", 0],
                "dataset": ["dataset", 0],
                "params": ["params", 0],
                "run_name": run_name,
                "seed": 42,
                "resume": True,
                "samples": ["sample", 0],
                "settings": ["settings", 0],
            }
            | train,
        ),
    }


def edited(prompt: Prompt) -> Prompt:
    """The training, and after it a look at the samples and an edit by the trained model."""
    return prompt | {
        "preview": node("EditTrainerPreviewSamples", run=["train", 2]),
        "edit": node(
            "EditTrainerEditImage",
            model=["train", 0],
            image=["dataset", 1],
            prompt="add a red frame",
            negative_prompt="",
            seed=1,
            steps=2,
            guidance=0.0,
            width=0,
            height=0,
            lora_strength=1.0,
        ),
        "saved": node("SaveImage", images=["edit", 0], filename_prefix="edited"),
    }


def compared_with_sampler(conditioning: str, output: int) -> Prompt:
    """ComfyUI's sampler on "loader"'s model, and "difference": what it draws beside "ours", "untrained" and "edit"."""
    parts = {"noise": ["ours", 0], "guider": ["guider", 0], "sampler": ["euler", 0], "sigmas": ["sigmas", 0]}
    latents = {"ours": ["ours", 4], "theirs": ["sampler", 0], "untrained": ["untrained", 4]}
    images = {"oracle_image": ["ours", 5], "node_image": ["edit", 0]}
    return {
        "guider": node("BasicGuider", model=["loader", 0], conditioning=[conditioning, output]),
        "euler": node("KSamplerSelect", sampler_name="euler"),
        "sigmas": node("ManualSigmas", sigmas=["ours", 1]),
        "sampler": node("SamplerCustomAdvanced", latent_image=["ours", 3], **parts),
        "difference": node("OracleDifference", **latents, **images),
    }
