"""Give ComfyUI the pack's nodes. Importing this module does nothing: pytest imports it too, and start-up stays fast."""

WEB_DIRECTORY = "./pu_node/web"


def comfy_entrypoint():
    """Return the extension with its nodes; ComfyUI calls this."""
    try:
        from .pu_node.extension import PUUnlearnExtension
    except Exception:
        import logging

        logging.exception("PU Unlearn: the nodes cannot be loaded")  # ComfyUI itself prints the message only
        raise
    return PUUnlearnExtension()
