"""edit-trainer: fine-tune image-editing models inside ComfyUI. What ComfyUI reads from a pack's root."""

WEB_DIRECTORY = "./web"


async def comfy_entrypoint():
    """The pack's extension. ComfyUI is imported here and below, never by importing this package."""
    from .nodes import EditTrainerExtension

    return EditTrainerExtension()
