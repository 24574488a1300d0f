"""A pack for the tests alone: ComfyUI's own models at the size of the embedded ones, and comparisons with ours."""


async def comfy_entrypoint():
    from .oracle_nodes import Oracles

    return Oracles()
