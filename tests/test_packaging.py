"""What hosts demand: the entry, requirements.txt that changes nothing which is installed, the templates."""

import importlib
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from make_workflows import BLUEPRINTS, NODES, OURS, WORKFLOWS, files
from PIL import Image

ROOT = Path(__file__).parents[1]

# What hosts have beside torch; their own environments were looked at, not guessed.
HOSTS = {
    "transformers 4": ["transformers==4.57.1", "huggingface_hub==0.36.0"],
    "transformers 5": ["transformers>=5.6", "huggingface_hub>=1"],
    "newest diffusers": ["transformers>=5.6", "diffusers>=0.42"],
}


def test_importing_the_entry_does_nothing():
    code = (
        "import sys, importlib.util as u; s = u.spec_from_file_location('pack', sys.argv[1]);"
        "m = u.module_from_spec(s); before = set(sys.modules); s.loader.exec_module(m);"
        "print(sorted(set(sys.modules) - before), m.WEB_DIRECTORY)"
    )
    done = subprocess.run([sys.executable, "-c", code, str(ROOT / "__init__.py")], capture_output=True, text=True)
    assert done.stdout.split() == ["[]", "./pu_node/web"], done.stderr


def test_every_node_has_a_literal_id_and_a_help_page():
    """The Manager finds nodes by a scan of the text; the page shows docs/<id>.md."""
    text = "".join(p.read_text(encoding="utf-8") for p in (ROOT / "pu_node").glob("nodes_*.py"))
    for name in (n for n in NODES if n.startswith("PU")):
        assert f'node_id="{name}"' in text
        assert len((ROOT / "pu_node" / "web" / "docs" / f"{name}.md").read_text(encoding="utf-8")) > 100


def test_requirements_name_neither_torch_nor_diffusers():
    names = [
        line.split(">=")[0] for line in (ROOT / "requirements.txt").read_text().splitlines() if line[:1] not in "# "
    ]
    assert not {"torch", "torchvision", "diffusers", "transformers", "huggingface_hub"} & set(names)
    assert len(names) >= 5


@pytest.mark.slow
@pytest.mark.parametrize("host", HOSTS)
def test_requirements_change_nothing_in_a_host(host, tmp_path):
    """Line by line, as ComfyUI-Manager installs them: only additions."""
    subprocess.run([sys.executable, "-m", "venv", tmp_path / "v"], check=True)
    pip = [tmp_path / "v" / "bin" / "python", "-m", "pip", "-q", "--disable-pip-version-check"]
    subprocess.run([*pip, "install", "torch==2.13.0", *HOSTS[host]], check=True)
    listed = subprocess.run([*pip[:3], "list", "--format", "json"], check=True, capture_output=True, text=True)
    have = {p["name"].lower().replace("_", "-"): p["version"] for p in json.loads(listed.stdout)}
    for line in (ROOT / "requirements.txt").read_text().splitlines():
        if line[:1] in "#":
            continue
        report = tmp_path / "report.json"
        subprocess.run([*pip, "install", "--dry-run", "--report", report, line], check=True)
        for item in json.loads(report.read_text())["install"]:
            name = item["metadata"]["name"].lower().replace("_", "-")
            assert name not in have, f"{line}: {name} {have[name]} would become {item['metadata']['version']}"


@pytest.mark.slow
def test_the_registrys_validator_has_no_remark(tmp_path):
    """It exits 0 even with findings, so its words count."""
    subprocess.run([sys.executable, "-m", "venv", tmp_path / "v"], check=True)
    scripts = tmp_path / "v" / "bin"
    subprocess.run([scripts / "pip", "install", "-q", "comfy-cli>=1.6", "ruff"], check=True)
    command = [scripts / "comfy", "--skip-prompt", "--no-enable-telemetry", "node", "validate"]
    environment = {**os.environ, "PATH": f"{scripts}{os.pathsep}{os.environ['PATH']}"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert "All validation checks passed successfully" in done.stdout, done.stdout + done.stderr
    assert "warning" not in (done.stdout + done.stderr).lower()


def test_icon_and_banner_are_what_the_registry_takes():
    """At most 400 x 400, and 21:9; the pictures are not in what users download."""
    with Image.open(ROOT / "docs" / "pictures" / "icon.png") as icon:
        assert icon.size == (400, 400)
    with Image.open(ROOT / "docs" / "pictures" / "banner.png") as banner:
        assert banner.width * 9 == banner.height * 21
    assert "docs/pictures/" in (ROOT / ".comfyignore").read_text().splitlines()
    assert {path.suffix for path in (ROOT / "pu_node" / "web").rglob("*") if path.is_file()} <= {".md", ".js"}


def test_templates_are_what_their_script_writes():
    for path, text in files().items():
        assert path.read_text(encoding="utf-8") == text, "make them again: python tests/make_workflows.py"
    assert {p.stem for p in (ROOT / "workflows").glob("*.json")} == set(WORKFLOWS)
    assert {p.stem for p in (ROOT / "subgraphs").glob("*.json")} == set(BLUEPRINTS)


def test_templates_have_thumbnails():
    for path in (ROOT / "workflows").glob("*.json"):
        with Image.open(path.with_suffix(".jpg")) as image:
            assert image.format == "JPEG"
            assert min(image.size) >= 200


def test_links_of_the_templates_fit():
    """Both ends of every link exist, agree on its type, and each input has one link at most."""
    for path in (ROOT / "workflows").glob("*.json"):
        workflow = json.loads(path.read_text(encoding="utf-8"))
        nodes = {n["id"]: n for n in workflow["nodes"]}
        for number, source, out_slot, target, in_slot, kind in workflow["links"]:
            output, entry = nodes[source]["outputs"][out_slot], nodes[target]["inputs"][in_slot]
            assert number in output["links"]
            assert entry["link"] == number
            assert output["type"] == kind
            assert entry["type"] in (kind, "*")
        for node in nodes.values():
            widgets = NODES[node["type"]][0]
            assert len(node["widgets_values"]) == len(widgets) + ("seed" in widgets)


def test_links_inside_a_blueprint_fit():
    """Ids, types and both ends agree, inside and at its border; its node shows the values of the widgets inside."""
    for name in BLUEPRINTS:
        workflow = json.loads((ROOT / "subgraphs" / f"{name}.json").read_text(encoding="utf-8"))
        (outer,), (graph,) = workflow["nodes"], workflow["definitions"]["subgraphs"]
        assert outer["type"] == graph["id"]
        assert [slot["name"] for slot in outer["inputs"]] == [slot["name"] for slot in graph["inputs"]]
        assert [slot["name"] for slot in outer["outputs"]] == [slot["name"] for slot in graph["outputs"]]
        assert len(outer["widgets_values"]) == sum("widget" in slot for slot in outer["inputs"])
        nodes = {node["id"]: node for node in graph["nodes"]}
        assert {node["type"] for node in nodes.values()} <= OURS
        for link in graph["links"]:
            if link["origin_id"] == graph["inputNode"]["id"]:
                source = graph["inputs"][link["origin_slot"]]
                assert link["id"] in source["linkIds"]
            else:
                source = nodes[link["origin_id"]]["outputs"][link["origin_slot"]]
                assert link["id"] in source["links"]
            if link["target_id"] == graph["outputNode"]["id"]:
                target = graph["outputs"][link["target_slot"]]
                assert link["id"] in target["linkIds"]
            else:
                target = nodes[link["target_id"]]["inputs"][link["target_slot"]]
                assert link["id"] == target["link"]
            assert source["type"] == target["type"] == link["type"]


def test_an_installed_package_has_the_page_and_its_command():
    """`trainer ui` loads pu_node from beside trainer; it was missing from the wheel once."""
    tomllib = pytest.importorskip("tomllib")
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    # In a process of its own: setuptools refuses to load once distutils has been imported.
    code = "import json, sys, setuptools as s; print(json.dumps(s.find_packages(sys.argv[1], include=sys.argv[2:])))"
    include = settings["tool"]["setuptools"]["packages"]["find"]["include"]
    done = subprocess.run([sys.executable, "-c", code, str(ROOT), *include], capture_output=True, text=True)
    if "No module named 'setuptools'" in done.stderr:
        pytest.skip("setuptools is not installed")
    packages = json.loads(done.stdout)
    assert {"trainer", "trainer.experiments", "pu_node"} <= set(packages)
    assert not any(name.startswith("tests") for name in packages)
    module, function = settings["project"]["scripts"]["pu-unlearn"].split(":")
    assert callable(getattr(importlib.import_module(module), function))


def test_the_command_speaks_utf8_as_the_module_does():
    """Whatever a console or a pipe is set to: `pu-unlearn` is what the entry in pyproject.toml names."""
    tomllib = pytest.importorskip("tomllib")
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    module, function = settings["project"]["scripts"]["pu-unlearn"].split(":")
    code = f"import sys; sys.argv[1:] = ['sämple→']; from {module} import {function} as run; sys.exit(run())"
    command = [sys.executable, ROOT / "trainer" / "__main__.py", "sämple→"]
    environment = {**os.environ, "PYTHONIOENCODING": "ascii", "PYTHONPATH": str(ROOT)}
    for words in ([sys.executable, "-c", code], command):
        done = subprocess.run(words, capture_output=True, env=environment, cwd=ROOT)
        assert done.returncode == 2
        assert "sämple→: no such command" in done.stderr.decode("utf-8")
        assert "Traceback" not in done.stderr.decode("utf-8")
