"""TensorBoard and Weights & Biases: a run's events, also written in the formats of other programs.

trackers        which trackers a run has, and its events passing through them
tensorboard_log event files in the run folder
wandb_log       a run of Weights & Biases
smoothing       the smoothed loss

accelerate.tracking is not used: its trackers make a folder of hyperparameters each time a run resumes, log images
without captions, and set up processes of their own.

Must not know: ComfyUI, the terminal, how anything is trained. tensorboard and wandb are imported only when asked for.
"""
