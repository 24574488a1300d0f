"""Encoding of images and captions into cached tensors, each once.

encoder     every row of a dataset, and single control images
row_checks  rows and samples checked for a model, before its weights are loaded
latents     images to latents, in batches or in parallel
text        captions to text conditioning, on disk or in blocks
example     one encoded row, by its cache keys
cache       the content-addressed store
masks       where the loss counts

Must not know: optimizers, run folders, or the terminal.
"""
