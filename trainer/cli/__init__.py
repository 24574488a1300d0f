"""The command line: python -m trainer.

main              runs a command; errors become messages and exit codes
parser            the options of all commands
model_options     those that locate the base model's files
settings_options  those of the run settings
runner            runs generators of events, and stops them at Ctrl-C
console           events as a progress bar or lines
train             the commands, a file each
plan
inspect
export
push
edit
demo
contact_sheet     the demo's image

Must not know: ComfyUI. No command imports torch before it needs it.
"""
