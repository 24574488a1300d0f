"""The embedded models, made from nothing for tests and the demo: tiny Flux Kontext, Qwen-Image-Edit, its 2511, and
FLUX.2 [klein].

make         the command that makes them: `python -m trainer.tiny.make`
parts        transformers, schedulers and pipelines, written as diffusers folders
vae          the VAEs and their training
encoders     text encoders with random weights
tokenizers   tokenizers with whole-word tokens
scenes       pictures of simple shapes
shapes       synthetic edit pairs, for making the models and for tests
requests     requests to train on such pairs

Must not know: ComfyUI or the command line.
"""
