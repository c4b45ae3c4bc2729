"""ComfyUI's door to AsynDM: asynchronous denoising (arXiv 2510.04504) as nodes."""

WEB_DIRECTORY = "./web"


async def comfy_entrypoint():
    """Called by ComfyUI when it loads the pack."""
    from .nodes.extension import AsynDMExtension

    return AsynDMExtension()
