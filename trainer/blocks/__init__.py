"""Forward passes of the transformers' repeated blocks, for training: what diffusers computes, in fewer kernels.

elementwise   norm + modulation, gate + residual, norm + rotation, GELU: functions with their own backward passes
attention     attention whose output can be kept from a checkpointed forward pass for its recomputation
flux          blocks of FLUX.1
qwen_image    blocks of Qwen-Image
install       gives a transformer these forward passes, where they compute what the installed diffusers computes

Must not know: files, LoRA, quantized formats, or memory plans.
"""
