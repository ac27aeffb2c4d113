"""--base by name: a path that is here, a mistyped one, or a hub id."""

import re

import huggingface_hub
import pytest

from trainer.common.errors import UserError
from trainer.models import hub


def test_hub_id_offline():
    with pytest.raises(UserError, match="no path nobody/nothing here, and the hub does not give"):
        hub.resolve_model_path("nobody/nothing")


def test_hub_that_says_nothing(monkeypatch):
    def fail(*arguments, **more):
        raise ConnectionError

    monkeypatch.setattr(huggingface_hub, "snapshot_download", fail)
    with pytest.raises(UserError, match=r"does not give nobody/nothing \(ConnectionError\(\)\)"):
        hub.resolve_model_path("nobody/nothing")


PATHS = ["x.safetensors", "v1-5", "models/v1-5", "models/x.safetensors", "none/x.CKPT", "./none/x", "~/x", "/none/x"]


@pytest.mark.parametrize("base", [*PATHS, r"C:\none\x", "C:/none/x", "a/b/c"])
def test_a_mistyped_path_is_no_hub_id(base, tmp_path, monkeypatch):
    (tmp_path / "models").mkdir()
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=f"--base: {re.escape(base)} does not exist"):
        hub.resolve_model_path(base)
