"""Requests and run settings: pydantic models of what a user asks for, and messages about what is wrong with it.

columns         the columns of a parquet that an example is read from
request         the fine-tune requests and their training parameters
samples         the sample prompts of a request
settings        the run settings
recorded        fields that enter run fingerprints and weights files
cuda_allocator  settings of torch's CUDA allocator, in the environment
packages        optional packages that some settings need
validation      decoding of JSON and wording of faults

Knows no torch, no parquet and no model.
"""
