"""Add the tab with the page to A1111 and Forge.

The pack is loaded by its path under a unique name: another extension may be called pu_node or trainer.
"""

import importlib
import importlib.util
import sys
from pathlib import Path

from modules import script_callbacks

PACK = "pu_unlearn_pack"


def on_ui_tabs():
    """Return the page, its title and its id; the webui calls this."""
    if PACK not in sys.modules:
        init = Path(__file__).resolve().parents[1] / "pu_node" / "__init__.py"
        spec = importlib.util.spec_from_file_location(PACK, init, submodule_search_locations=[str(init.parent)])
        sys.modules[PACK] = importlib.util.module_from_spec(spec)
    page, webui = (importlib.import_module(f"{PACK}.{name}") for name in ("page", "webui_host"))
    return [(page.build(webui.job()), "PU Unlearn", "pu_unlearn")]


script_callbacks.on_ui_tabs(on_ui_tabs)
