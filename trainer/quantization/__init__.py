"""Quantized weights of the frozen base: formats, layers and low-precision matmuls.

formats     the table of formats, and a quantized weight
kernels     quantize and dequantize kernels of the formats
quantize    quantizes plain weights while a model is loaded
linear      QuantizedLinear, the frozen Linear on quantized values
matmul      matmuls with a frozen weight, forward and backward
benchmark   which precisions a GPU multiplies faster in low precision

Must not know: files, model families, or what is trained.
"""
