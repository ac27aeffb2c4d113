"""ComfyUI's entry to the pack. Importing it does nothing: pytest imports it too, and ComfyUI's start stays quick."""

WEB_DIRECTORY = "./pu_node/web"


def comfy_entrypoint():
    """Called by ComfyUI. Returns: the extension with its nodes."""
    try:
        from .pu_node.extension import PUUnlearnExtension
    except Exception:
        import logging

        logging.exception("PU Unlearn: the nodes cannot be loaded")  # ComfyUI itself prints the message only
        raise
    return PUUnlearnExtension()
