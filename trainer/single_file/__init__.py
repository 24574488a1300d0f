"""Weights in single files: transformers, text encoders and VAEs in safetensors or GGUF, plain or quantized.

- header.py: reads headers, and tensors one at a time.
- gguf_reader.py: gguf's reader, bounded in time.
- detect.py: recognizes kinds of files from their tensors' names.
- key_mapping.py: how single files name and fuse a transformer's modules.
- quantization_metadata.py: how a file's weights are quantized.
- load_module.py: checks a file's keys against a module and fills in the weights.
- text_encoder.py, vae.py, tokenizer.py: text encoders, VAEs and tokenizers.
- fingerprint.py: digests of model files.

It must not know any model family by name; their records are in families/.
"""
