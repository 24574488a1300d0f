"""LoRA: the trained layer, the adapter on a transformer, and files of this and other programs.

- layer.py: LoraLinear, a Linear with trainable low-rank matrices.
- adapter.py: LoraAdapter, which adds them to a transformer and exports them; `load_lora` for inference.
- formats.py: LoRA files of other programs, converted to the portable form.
- scales.py: the scales of files without alpha tensors.
- init_lora.py: the LoRA file that a training continues from.
- sample_lora.py: a LoRA file that is applied only while samples are drawn.

It must not know memory placement, datasets or the training loop.
"""
