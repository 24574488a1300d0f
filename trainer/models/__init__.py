"""The supported models: their files, how they are loaded, and what differs between families.

- edit_model.py: EditModel, a handle on a base model's files; `open_model`.
- model_files.py: single files in place of a base model's components.
- pipeline_folder.py: a base model's folder in diffusers' layout.
- transformer.py: the transformer, from a single file or a diffusers folder.
- family.py: Family, the interface that everything else programs against.
- captions.py: what a model takes of captions; control tokens in them are text.
- types.py: text encoder and image codec protocols, packed latents.
- diffusers_family.py: what the families share because their diffusers pipelines do.
- flux_family.py: what FLUX.1 Kontext and FLUX.2 [klein] share beyond that.
- flux_kontext.py, flux_single_file.py: FLUX.1 Kontext and its single files.
- flux2_klein.py, flux2_single_file.py: FLUX.2 [klein], under both policies, and its single files.
- qwen_image_edit_plus.py: Qwen-Image-Edit-2509 and -2511, under both policies.
- qwen_image_edit.py, qwen_encoders.py, qwen_processor.py, qwen_single_file.py: Qwen-Image-Edit, its text encoder and
  VAE, its processor and its single files.
- comfyui_parity.py: FLUX.1 Kontext and Qwen-Image-Edit with ComfyUI's image resizing in place of diffusers'.
- configs/: the published models' folders in diffusers' pipeline layout, without weights.

It must not know LoRA, memory placement, caching or training.
"""
