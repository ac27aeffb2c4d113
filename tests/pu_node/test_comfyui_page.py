"""ComfyUI's own page in headless Chromium: open each template, run it, look at it.

Needs a ComfyUI (see comfyui_server), Chromium and the package playwright; skipped, and counted as such, without.
PU_SCREENSHOTS=FOLDER keeps the pictures, PU_STEPS=600 trains to the end: those in docs/pictures were made so, and
cropped.
"""

import itertools
import json
import os
import shutil
from pathlib import Path

import pytest
from comfyui_server import ROOT, needs_comfyui, server

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
playwright = pytest.importorskip("playwright.sync_api", reason="no playwright")
pytestmark = [needs_comfyui, pytest.mark.skipif(CHROMIUM is None, reason="no Chromium")]
__all__ = ["server"]

BLUEPRINTS = sorted(p.stem for p in (ROOT / "subgraphs").glob("*.json"))
TEMPLATES = sorted(p.stem for p in (ROOT / "workflows").glob("*.json"))
READY = "() => window.app?.graph && window.LiteGraph?.registered_node_types?.PUUnlearn"
# the server tells by events what a node shows and whether the prompt went through
LISTEN = """() => {
    window.seen = {previews: 0, ended: null};
    for (const kind of ["b_preview", "b_preview_with_metadata"])
        app.api.addEventListener(kind, () => window.seen.previews++);
    for (const kind of ["execution_success", "execution_error", "execution_interrupted"])
        app.api.addEventListener(kind, (e) => window.seen.ended = [kind, e.detail.exception_message]);
}"""
MISSING = """() => app.graph.nodes
    .filter((n) => !LiteGraph.registered_node_types[n.type]).map((n) => n.type)"""
# left, top, right, bottom of each node: on the canvas, and with the renderer whose nodes are part of the document
BOXES = {
    "canvas": """() => app.graph.nodes
        .map((n) => [n.pos[0], n.pos[1] - 30, n.pos[0] + n.size[0], n.pos[1] + n.size[1]])""",
    "vue": """() => [...document.querySelectorAll("[data-node-id]")].map((e) => e.getBoundingClientRect())
        .map((r) => [r.left, r.top, r.right, r.bottom])""",
}
FIT = "() => app.extensionManager.command.execute('Comfy.Canvas.FitView')"
QUIET = """() => {
    app.extensionManager.setting.set("Comfy.Minimap.Visible", false);
    app.extensionManager.setting.set("Comfy.TutorialCompleted", true);
}"""


@pytest.fixture(scope="module")
def browser():
    with playwright.sync_playwright() as driver:
        found = driver.chromium.launch(
            executable_path=CHROMIUM, args=["--no-sandbox", "--disable-dev-shm-usage", "--disable-gpu"]
        )
        yield found
        found.close()


@pytest.fixture
def page(server, browser):
    found = browser.new_page(viewport={"width": 2000, "height": 1250})
    found.goto(f"http://127.0.0.1:{server.port}/")
    found.wait_for_function(READY, timeout=60000)
    found.evaluate(QUIET)
    found.keyboard.press("Escape")  # the dialog that greets a first visitor
    found.wait_for_timeout(500)
    found.evaluate(LISTEN)
    yield found
    found.close()


@pytest.fixture
def shoot(page, tmp_path):
    folder = Path(os.environ.get("PU_SCREENSHOTS", tmp_path))

    def shoot(name):
        page.wait_for_timeout(1500)  # animations end
        page.screenshot(path=folder / f"{name}.png")
        assert (folder / f"{name}.png").stat().st_size > 20_000

    return shoot


def open_template(page, stem):
    """As a user does: Browse Templates, our pack, the card."""
    page.evaluate("() => app.extensionManager.command.execute('Comfy.BrowseTemplates')")
    page.get_by_text("pu-unlearn", exact=False).first.click()
    card = page.get_by_text(stem.replace("-", " "), exact=False).first
    card.wait_for(timeout=20000)
    return card


def essence(saved):
    """What must come back: nodes, their widgets and the links."""
    nodes = {n["id"]: (n["type"], n.get("widgets_values") or []) for n in saved["nodes"]}
    return nodes, sorted(tuple(link) for link in saved["links"])


@pytest.mark.parametrize("stem", TEMPLATES)
def test_a_template_opens_whole_and_comes_back_unchanged(page, shoot, stem):
    card = open_template(page, stem)
    if stem == TEMPLATES[0]:
        shoot("templates")
    card.click()
    saved = json.loads((ROOT / "workflows" / f"{stem}.json").read_text())
    page.wait_for_function(f"() => app.graph.nodes.length === {len(saved['nodes'])}", timeout=20000)
    assert page.evaluate(MISSING) == []
    assert essence(page.evaluate("() => app.graph.serialize()")) == essence(saved)
    page.evaluate(FIT)
    shoot(stem)


@pytest.mark.parametrize("renderer", BOXES)
@pytest.mark.parametrize("stem", TEMPLATES)
def test_no_two_nodes_of_a_template_overlap(page, shoot, stem, renderer):
    page.evaluate("(on) => app.extensionManager.setting.set('Comfy.VueNodes.Enabled', on)", renderer == "vue")
    saved = json.loads((ROOT / "workflows" / f"{stem}.json").read_text())
    page.evaluate("(saved) => app.loadGraphData(saved)", saved)
    page.wait_for_timeout(1000)
    page.evaluate(FIT)
    shoot(f"{stem}-{renderer}")
    boxes = page.evaluate(BOXES[renderer])
    page.evaluate("() => app.extensionManager.setting.set('Comfy.VueNodes.Enabled', false)")
    if renderer == "vue" and not boxes:
        pytest.skip("this ComfyUI has no such renderer")
    assert len(boxes) == len(saved["nodes"])
    for (i, a), (j, b) in itertools.combinations(enumerate(boxes), 2):
        assert a[2] <= b[0] or b[2] <= a[0] or a[3] <= b[1] or b[3] <= a[1], (i, j)


@pytest.mark.parametrize("name", BLUEPRINTS)
def test_a_blueprint_opens_and_stands_for_what_is_inside(page, shoot, name):
    """Its file is a workflow too: opened, its prompt has the nodes inside with their values and links."""
    saved = json.loads((ROOT / "subgraphs" / f"{name}.json").read_text())
    page.evaluate("(saved) => app.loadGraphData(saved)", saved)
    page.wait_for_function("() => app.graph.nodes.length === 1 && app.graph.nodes[0].subgraph", timeout=20000)
    page.evaluate("() => app.graph.nodes[0].widgets.find((w) => w.name === 'steps').value = 7")
    prompt = page.evaluate("async () => (await app.graphToPrompt()).output")
    inside = {node["class_type"]: (number, node["inputs"]) for number, node in prompt.items()}
    assert set(inside) == {"PUUnlearn", "PUApplyLoRA", "PUCompare"}
    unlearn, apply, compare = (inside[kind] for kind in ("PUUnlearn", "PUApplyLoRA", "PUCompare"))
    assert unlearn[1]["steps"] == 7
    assert unlearn[1]["name"] == "pu-lora"
    assert apply[1]["lora"] == [unlearn[0], 0]
    assert compare[1]["after"] == [apply[0], 0]
    assert compare[1]["prompt"] == "a photo of a man"
    page.evaluate(FIT)
    shoot("blueprint")
    page.evaluate("() => app.canvas.openSubgraph(app.graph.nodes[0].subgraph, app.graph.nodes[0])")
    page.evaluate(FIT)
    shoot("blueprint-inside")


def run(page, stem, shoot, **widgets):
    """Load, set widgets by name, queue; a picture while it trains and one at the end. Returns: how it ended."""
    saved = json.loads((ROOT / "workflows" / f"{stem}.json").read_text())
    page.evaluate("(saved) => app.loadGraphData(saved)", saved)
    page.evaluate(
        """(values) => { for (const n of app.graph.nodes) for (const w of n.widgets ?? [])
            if (n.type !== "MarkdownNote" && w.name in values) w.value = values[w.name]; }""",
        widgets,
    )
    page.evaluate(FIT)
    page.evaluate("() => app.queuePrompt(0, 1)")
    # one preview every five steps, and one with each sample: the picture is taken after the second sample
    enough = max(2, widgets["steps"] // 5 // 2)
    page.wait_for_function(f"() => window.seen.previews > {enough} || window.seen.ended", timeout=240000)
    shoot(f"{stem}-training")
    page.wait_for_function("() => window.seen.ended", timeout=300000)
    shoot(f"{stem}-done")
    return page.evaluate("() => window.seen")


def test_the_demo_shows_itself_training(page, shoot):
    seen = run(page, "digits-demo-without-checkpoint", shoot, steps=int(os.environ.get("PU_STEPS", "12")), name="page")
    assert seen["ended"][0] == "execution_success", seen
    assert seen["previews"] > 2
    shown = page.evaluate("() => app.graph.nodes.filter((n) => n.imgs?.length).map((n) => n.type)")
    assert shown.count("PreviewImage") == 2


def test_the_checkpoint_template_runs_in_the_page(page, shoot):
    values = {"checkpoint": "tiny.safetensors", "ckpt_name": "tiny.safetensors", "unlabeled": "unlabeled"}
    values |= {"sensitive": "sensitive", "steps": 1, "name": "page-sd", "resolution": 64, "count": 1}
    seen = run(page, "unlearn-with-sd15-checkpoint", shoot, **values)
    assert seen["ended"][0] == "execution_success", seen
