"""Forward passes of the transformers' repeated blocks, for training: what diffusers computes, in fewer kernels.

elementwise   norm + modulation, gate + residual: functions with their own backward passes
activations   GELU and SwiGLU, as such functions
rotation      norm + rotation of queries and keys, as such functions
attention     attention whose output can be kept from a checkpointed forward pass for its recomputation
cpu_attention attention in bf16 on the CPU, as matmuls of tiles
flux          blocks of FLUX.1
flux2         blocks of FLUX.2
qwen_image    blocks of Qwen-Image
trial         small blocks in which a forward pass of this package is compared with diffusers'
install       gives a transformer these forward passes, where they compute what the installed diffusers computes

Must not know: files, LoRA, quantized formats, or memory plans.
"""
