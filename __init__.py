"""edit-trainer: fine-tune image-editing models inside ComfyUI. What ComfyUI reads from a pack's root."""

WEB_DIRECTORY = "./web"


async def comfy_entrypoint():
    """The pack's extension. ComfyUI is imported here and below, never by importing this package."""
    from .nodes import EditTrainerExtension
    from .nodes.routes import add_routes

    add_routes()  # ComfyUI 0.8.0 does not call an extension's on_load
    return EditTrainerExtension()
