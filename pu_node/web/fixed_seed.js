// A fresh node keeps its seed: ComfyUI's page would choose "randomize", and PU Unlearn would train anew with every Run.
// Newer pages read "fixed" from the node itself; a saved workflow's own choice comes after this and counts.
import { app } from "../../scripts/app.js";

app.registerExtension({
    name: "pu-unlearn.fixed-seed",
    nodeCreated(node) {
        if (!node.comfyClass?.startsWith("PU")) return;
        for (const widget of node.widgets ?? []) {
            if (widget.name === "control_after_generate") widget.value = "fixed";
        }
    },
});
