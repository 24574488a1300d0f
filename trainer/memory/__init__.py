"""Memory of a run: the plan that fits the device, and carrying it out.

planner            the plan for a request, a model and a device
plan               what a plan holds, and its line for the user
estimate           device and host memory of one request, plan by plan
phases             memory of encoding, loading and sampling besides the training
weight_bytes       bytes of the transformer's weights, counted without loading them
activation_bytes   bytes of activations, measured on tensors without storage
few_blocks         the forward and backward pass of some blocks that they are measured in
codec_bytes        bytes that the VAE computes with, measured on tensors without storage
live_bytes         counts the bytes of living tensors while code runs
encoder_bytes      bytes of the text encoders, counted without loading them
model_parts        loads transformer, text encoder and VAE, and moves them on and off the device
edit_session       keeps components loaded from one edit to the next
hosted_weights     takes weights as they are loaded: to the device, or to host buffers
placement          applies a plan to a transformer
block_streaming    streams frozen blocks from host memory
streamed_module    streams the layers of a text encoder that the device cannot hold
modulation         computes modulation ahead of the steps, its weights in host memory
checkpointing      activation checkpointing per block
host_inputs        inputs of checkpointed blocks in host memory
pinned             host buffers, page-locked within a budget

Must not know: the dataset, or how steps and samples are run.
"""
