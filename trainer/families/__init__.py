"""Facts about the supported model families, in plain data that every other room may read.

- info.py: the types of a family's record.
- file_kinds.py: the kinds of their weights files.
- records.py: the records of FLUX.1 Kontext, Qwen-Image-Edit, Qwen-Image-Edit-2509 and -2511, and FLUX.2 [klein].
- registry.py: the list of records, and look-ups by base model.

It must not import torch, diffusers, transformers or ComfyUI; classes of theirs are named as strings.
"""
