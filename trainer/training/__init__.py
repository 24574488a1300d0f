"""Training of one run: from a checked request to an exported weights file.

setup           open_run: checks, run folder, plan, cache, gathered in a RunContext
loop            train: the steps, as a generator of events
retry           a smaller plan after the device ran out of memory
state           training state: weights, optimizer, step and data position
trainable       the trained weights: a LoRA, or all of the transformer
average         exponential moving average of the trained weights
held_out        held-out rows, and their loss at fixed noise levels
validation      when the held-out loss is measured, and the best checkpoint
step            forward and backward pass of a micro-batch
flow_matching   timesteps, noising and loss of rectified flow
optim           optimizers and the learning rate schedule
batch_sampler   which examples share a micro-batch
batch           micro-batches, loaded and with their noise
dataloader      encoding of everything a run needs, and loading ahead
sample_images   drawing of the sample prompts
sample_base     another base that samples are drawn on
rng             addressed random generators
checkpoint      checkpoints on disk
choose_folder   which folder a run starts or resumes in
run_folder      the run folder and its fingerprint
run_lock        the lock of a run folder
run_state       run.json
run_log         log.jsonl
metadata        header of the exported file
export          exported files, at the end of a run and of its checkpoints

Must not know: ComfyUI, or the terminal.
"""
