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
    for name in ("plan", "start", "resume", "cancel", "refresh", "status", "curve", "sample", "files"):
        assert f"pu_unlearn_{name}" in parts
    for name, shown in (("prior", "estimated"), ("min_snr_gamma", "none")):
        assert parts[f"pu_unlearn_{name}"]["type"] == "textbox"  # a number would show 0
        assert parts[f"pu_unlearn_{name}"]["props"]["placeholder"] == shown
    texts = [c["props"].get("value") or "" for c in parts.values() if c["type"] == "html"]
    texts += [c["props"].get("value") or "" for c in blocks.get_config_file()["components"] if c["type"] == "html"]
    assert any("<h2>PU Unlearn</h2><p>Train a LoRA" in text for text in texts)


def test_the_plan_gives_a_verdict():
    from pu_node import page_events

    say = lambda **event: page_events._verdict({"event": "plan", **event})[0]  # noqa: E731
    assert say(fits=True, budget_gib=7.62) == "Yes, it fits into the 7.6 GiB there are."
    assert say(fits=False, budget_gib=2.0).startswith("No, it does not fit into the 2.0 GiB there are: lower")
    assert say(fits=True, budget_gib=None).startswith("No graphics card was found")


def test_missing_captions_are_told_before_start(tmp_path):
    from pu_node import page_events

    (tmp_path / "a.png").touch()
    host = page_host.Host(
        lambda: {"own": tmp_path / "m"}, [tmp_path], tmp_path, lambda: tmp_path, lambda check: contextlib.nullcontext()
    )
    check = page_events.caption_checker(training_job.Job(host))
    assert "1 of 1 unlabeled images have no caption" in check("own", str(tmp_path), "")["value"]
    for words in (("own", str(tmp_path), "x"), (form.DEMO, str(tmp_path), ""), ("own", "/etc", ""), ("own", "", "")):
        assert not check(*words)["visible"]
    values = {"checkpoint": "own", "preset": "auto", "unlabeled": str(tmp_path), "sensitive": str(tmp_path)}
    values |= form.defaults("own")
    names, lines = list(values), [*values, "general"]
    work = training_job.Job(host)
    said = page_events.starter(work, names, lines)(*values.values())
    shown = {name: update["value"] for name, update in zip(lines, said, strict=True) if update["visible"]}
    assert shown.keys() == {"prompt"}
    assert not work.is_running


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
