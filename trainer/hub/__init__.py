"""A run's LoRA on the Hugging Face hub. Nothing here is called unless a person asks for it.

package     the files of a run that are uploaded, without what is private
model_card  the model card
push        the upload, and the hub's refusals in words

Must not know: ComfyUI, the terminal, tokens other than by huggingface_hub's own login.
"""
