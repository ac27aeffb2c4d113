"""The page, built by the gradio that is here: a form with every field. (In browsers: test_page_gradio.)"""

import contextlib

import pytest

from pu_node import form, page_host, training_job

pytest.importorskip("gradio", reason="no gradio")


def test_every_field_is_on_the_page(tmp_path):
    from pu_node import page

    host = page_host.Host(
        lambda: {"own": tmp_path}, [tmp_path], tmp_path, lambda: tmp_path, lambda check: contextlib.nullcontext()
    )
    blocks = page.build(training_job.Job(host))
    parts = {c["props"].get("elem_id"): c for c in blocks.get_config_file()["components"]}
    for name in (*form.fields(), "checkpoint", "preset", "unlabeled", "sensitive"):
        assert f"pu_unlearn_{name}" in parts
        assert not parts[f"pu_unlearn_{name}_problem"]["props"]["visible"]
    assert [choice[0] for choice in parts["pu_unlearn_checkpoint"]["props"]["choices"]] == [form.DEMO, "own"]
    for name in ("plan", "start", "cancel", "refresh", "status", "curve", "sample", "files"):
        assert f"pu_unlearn_{name}" in parts


def test_missing_packages_are_said_on_the_page(monkeypatch):
    from pu_node import environment, page

    assert page._notice(page_host.advice()) == ""
    monkeypatch.setattr(environment, "python", lambda **_: None)
    monkeypatch.setattr(environment, "missing", lambda: ["diffusers is missing (needed: <0.43)"])
    said = page._notice(page_host.advice())
    assert "The trainer&#x27;s packages are not installed: diffusers is missing (needed: &lt;0.43)." in said
    assert "install.py" in said


def test_bad_values_come_back_beside_their_fields(tmp_path):
    from pu_node import page_events

    work = training_job.Job(
        page_host.Host(dict, [tmp_path], tmp_path, lambda: tmp_path, lambda check: contextlib.nullcontext())
    )
    values = {"checkpoint": form.DEMO, "preset": "auto", "unlabeled": "", "sensitive": "", **form.defaults(form.DEMO)}
    names, lines = list(values), [*values, "general"]
    said = page_events.starter(work, names, lines)(*{**values, "steps": 1.5}.values())
    shown = {name: update["value"] for name, update in zip(lines, said, strict=True) if update["visible"]}
    assert shown == {"steps": "steps: must be a whole number"}
    assert work.state()[0].phase == "idle"
