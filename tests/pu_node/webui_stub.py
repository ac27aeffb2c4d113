"""A1111's or Forge's frame around the page, for the tests: run by a Python with one of their gradio versions.

    python tests/pu_node/webui_stub.py a1111|forge DATA_FOLDER PORT

The webui's modules are stand-ins with the few names that the extension uses; what they are asked is written to
DATA_FOLDER/asked.txt. preload.py and scripts/pu_unlearn.py are executed as a webui does it, and the tab is rendered
inside its own page.
"""

import argparse
import contextlib
import importlib.util
import sys
import threading
import types
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def module(name, **names):
    found = types.ModuleType(name)
    found.__dict__.update(names)
    sys.modules[name] = found
    parent, _, child = name.rpartition(".")
    if parent:
        setattr(sys.modules[parent], child, found)
    return found


def pretend(kind, data, arguments):
    """Put the webui's modules into sys.modules. Returns: the list of callbacks for tabs."""
    lock, tabs = threading.Lock(), []

    def asked(what):
        with open(data / "asked.txt", "a") as file:
            file.write(f"{what} {'locked' if lock.locked() else 'unlocked'}\n")

    parser = argparse.ArgumentParser()
    parser.add_argument("--lora-dir", default=str(data / "models" / "Lora"))
    load(ROOT / "preload.py").preload(parser)
    checkpoints = sorted((data / "models" / "Stable-diffusion").glob("*.safetensors"))
    listed = {p.name: types.SimpleNamespace(name=p.name, filename=str(p)) for p in checkpoints}
    model = types.SimpleNamespace(sd_model=object())
    models = {"checkpoints_list": listed, "model_data": model}
    models["list_models"] = lambda: None
    models["unload_model_weights"] = lambda: asked("unload_model_weights")
    module("modules")
    module("modules.shared", cmd_opts=parser.parse_args(arguments), sd_model=model.sd_model)
    module("modules.paths_internal", data_path=str(data))
    module("modules.script_callbacks", on_ui_tabs=tabs.append)
    module("modules.call_queue", queue_lock=lock)
    page = types.SimpleNamespace(name="lora", refresh=lambda: asked("refresh"))
    module("modules.ui_extra_networks", extra_pages=[page])
    if kind == "forge":
        module("backend")
        module("backend.memory_management", unload_all_models=lambda: asked("unload_all_models"))
    else:
        models["send_model_to_device"] = lambda m: asked("send_model_to_device")
    module("modules.sd_models", **models)
    return tabs


def load(path):
    """As a webui loads scripts."""
    spec = importlib.util.spec_from_file_location(path.name, path)
    found = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(found)
    return found


def main():
    kind, data, port, *arguments = sys.argv[1:]
    import gradio as gr

    tabs = pretend(kind, Path(data), arguments)
    load(ROOT / "scripts" / "pu_unlearn.py")
    interfaces = [tab for callback in tabs for tab in callback()]  # before the page they go into, as both do
    with gr.Blocks(analytics_enabled=False, title="Stable Diffusion") as demo, gr.Tabs(elem_id="tabs"):
        with gr.TabItem("txt2img", id="txt2img"):
            gr.Textbox(label="Prompt")
        for blocks, title, name in interfaces:
            with gr.TabItem(title, id=name, elem_id=f"tab_{name}"):
                blocks.render()
    demo.queue(64)  # as both do, whatever the first argument means to their gradio
    assert "trainer" not in sys.modules
    with contextlib.suppress(KeyboardInterrupt):
        demo.launch(server_name="127.0.0.1", server_port=int(port), share=False)


if __name__ == "__main__":
    main()
