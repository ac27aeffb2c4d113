"""The `ui` command: the page of A1111 and Forge by itself, in a browser on this machine."""

from __future__ import annotations

import argparse
import contextlib
import importlib
import importlib.util
import ipaddress
import os
import socket
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import Any
from urllib.parse import urlsplit

from .common import errors
from .common.errors import UserError

PACK = "pu_unlearn_pack"
PACK_FOLDER = Path(__file__).resolve().parents[1] / "pu_node"
LOOPBACK = ("127.0.0.1", "localhost", "::1")
MODELS = (".safetensors", ".ckpt")


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> Any:
        raise UserError(message.removeprefix("argument "))


def make_parser() -> argparse.ArgumentParser:
    parser = _Parser(prog="python -m trainer ui", description="The page in a browser.", allow_abbrev=False)
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on [127.0.0.1: this machine only]")
    parser.add_argument("--port", type=_port, help="[the first free one from 7860 on]")
    parser.add_argument("--output-dir", type=Path, default=Path("output"), help="LoRAs and run folders [output]")
    parser.add_argument(
        "--allow-dir",
        type=Path,
        action="append",
        help="folders of images are taken below DIR only; may be given more than once [the working directory]",
        metavar="DIR",
    )
    parser.add_argument(
        "--checkpoint-dir",
        type=Path,
        action="append",
        default=[],
        help="the page lists the models below DIR; may be given more than once [none: the built-in demo only]",
        metavar="DIR",
    )
    return parser


def _port(text: str) -> int:
    if not text.isdecimal() or not 0 < int(text) < 2**16:
        raise argparse.ArgumentTypeError(f"must be a number from 1 to 65535, got {text!r}")
    return int(text)


def main(argv: Sequence[str]) -> int:
    """Serve the page until Ctrl-C. Returns: an exit code. Raises: UserError."""
    options = make_parser().parse_args(argv)
    allowed = options.allow_dir or [Path()]
    for name, folders in (("--allow-dir", allowed), ("--checkpoint-dir", options.checkpoint_dir)):
        for folder in folders:
            if not folder.is_dir():
                raise UserError(f"{name}: no folder {folder}")
    if not (PACK_FOLDER / "page.py").exists():
        raise UserError(f"ui: no {PACK_FOLDER}: the page comes with a checkout, not with the installed package")
    if importlib.util.find_spec("gradio") is None:
        raise UserError('ui: the page needs gradio. Install it with: pip install "gradio>=3.41"')
    os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")  # it would tell its makers of every start
    page, page_host, training_job = (_pack(name) for name in ("page", "page_host", "training_job"))
    output = options.output_dir.absolute()
    models = [folder.absolute() for folder in options.checkpoint_dir]
    host = page_host.Host(
        checkpoints=lambda: _models(models),
        roots=[folder.absolute() for folder in allowed],
        output=output,
        lora_folder=lambda: output,
        card=lambda check: contextlib.nullcontext(),
    )
    with tempfile.TemporaryDirectory() as empty:
        os.chdir(empty)  # gradio 3 serves whatever lies in the working directory
        _serve(page.build(training_job.Job(host)), options.host, options.port)
        os.chdir(output.anchor)
    return errors.DONE


def _pack(name: str) -> ModuleType:
    """Load a module of pu_node by its path: another extension may have a package of that name."""
    if PACK not in sys.modules:
        init = PACK_FOLDER / "__init__.py"
        spec = importlib.util.spec_from_file_location(PACK, init, submodule_search_locations=[str(PACK_FOLDER)])
        assert spec is not None  # it is None for endings other than .py
        sys.modules[PACK] = importlib.util.module_from_spec(spec)
    return importlib.import_module(f"{PACK}.{name}")


def _models(folders: Sequence[Path]) -> dict[str, Path]:
    """List checkpoints by their path below their folder."""
    return {
        str(path.relative_to(folder)): path
        for folder in folders
        for path in sorted(folder.rglob("*"))
        if path.suffix in MODELS and path.is_file()
    }


def _serve(blocks: Any, host: str, port: int | None) -> None:
    import gradio
    from starlette.middleware import Middleware

    if host not in LOOPBACK:
        print(f"{host}: whoever reaches this address can start trainings here", file=sys.stderr)
    # gradio 3 runs one function at a time unless told, and the one that shows the training takes as long as that
    blocks.queue(**({"concurrency_count": 40} if gradio.__version__.startswith("3.") else {}))
    name = socket.gethostname()
    hosts = LOOPBACK if host in LOOPBACK else (*LOOPBACK, host, name, f"{name}.local")
    own = Middleware(OwnPageOnly, hosts=hosts, any_address=host not in LOOPBACK)
    try:
        blocks.launch(server_name=host, server_port=port, share=False, app_kwargs={"middleware": [own]})
    except OSError as error:
        raise UserError(f"--host, --port: cannot listen there ({error})") from None


class OwnPageOnly:
    """Refuses what other web pages send through the user's browser; gradio 3 lets every origin in.

    Args:
        hosts: names by which this server may be called; a page that gave its own name our address is refused.
        any_address: it may also be called by an address in numbers, which nobody can give to a page of theirs.
    """

    def __init__(self, app: Any, hosts: Sequence[str], *, any_address: bool) -> None:
        self.app, self.hosts, self.any_address = app, [name.lower() for name in hosts], any_address

    async def __call__(self, scope: dict[str, Any], receive: Any, send: Any) -> None:
        if scope["type"] in ("http", "websocket") and not self._is_own(dict(scope["headers"])):
            if scope["type"] == "websocket":
                await send({"type": "websocket.close", "code": 1008})
            else:
                await send({"type": "http.response.start", "status": 403, "headers": []})
                await send({"type": "http.response.body", "body": b"Refused: not sent by this page."})
            return
        await self.app(scope, receive, send)

    def _is_own(self, headers: dict[bytes, bytes]) -> bool:
        called = headers.get(b"host", b"").decode("latin-1")
        origin = headers.get(b"origin", b"").decode("latin-1")
        name = urlsplit(f"//{called}").hostname or ""
        if name not in self.hosts and not (self.any_address and _is_address(name)):
            return False
        return not origin or urlsplit(origin).netloc == called


def _is_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True
