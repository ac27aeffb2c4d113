"""Install what the trainer needs. ComfyUI-Manager runs this after installing, A1111 and Forge at every start.

Missing packages are added to the host's Python only if no installed package changes. Otherwise the trainer gets an
environment of its own, venv/ beside this file, which uses the host's torch where that one fits. Exits with 0 always: a
failure leaves the host as it was and is one line here and in install-failed.txt, which the nodes show.
PU_UNLEARN_INSTALL=off reports and installs nothing. Standard library only.
"""

from __future__ import annotations

import contextlib
import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tempfile
import zipfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
MARK = "made-by-install.txt"  # in an environment of ours: one without it is the user's and is never replaced
SHARED = ("torch", "torchvision", "torchaudio", "triton", "triton-windows")  # never installed a second time
TORCH_INDEX = "https://download.pytorch.org/whl/"
SHOWN = 6  # packages named in a line of progress
SPARE_BYTES = 200 * 2**20  # of disk that stay free
NOT_FOR_PIP = ("PIP_USER", "PIP_TARGET", "PIP_PREFIX", "PIP_ROOT", "PIP_REQUIRE_VIRTUALENV")  # where to install is ours
QUIET = {"PIP_DISABLE_PIP_VERSION_CHECK": "1", "PIP_NO_INPUT": "1", "PIP_NO_COLOR": "1", "PIP_PROGRESS_BAR": "off"}
REASONS = (  # what pip and Python print -> what a person reads; the first that matches
    ("No space left on device|WinError 112", "the disk is full"),
    ("Permission ?denied|PermissionError|Read-only file system|WinError 5", "no permission to write there"),
    ("NewConnectionError|ConnectionError|Max retries|name resolution|Read timed out|ProxyError|SSLError|dns error",
     "the package index cannot be reached; is this machine online?"),
    ("from versions: none", "the package index cannot be reached or has no fitting build; is this machine online?"),
    ("externally-managed-environment", "the system's package manager looks after this Python"),
    ("ResolutionImpossible|conflicting dependencies|No matching distribution", "the requirements conflict"),
)  # fmt: skip


def _load_environment() -> Any:
    """Load pu_node/environment.py by its path: a portable Python does not have this folder on its path."""
    name = "pu_unlearn_environment"
    spec = importlib.util.spec_from_file_location(name, HERE / "pu_node" / "environment.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


environment = _load_environment()


class Failure(Exception):
    """An installation that cannot succeed; the text is the reason in one line."""


def say(text: str) -> None:
    print(f"PU Unlearn: {text}", flush=True)


def main() -> None:
    chosen = os.environ.get("PU_UNLEARN_PYTHON")
    if chosen:
        say(f"training runs with {chosen}.")
    elif os.environ.get("PU_UNLEARN_INSTALL", "").lower() == "off":
        report()
    else:
        try:
            with locked() as is_ours:
                if is_ours:
                    install()
                else:
                    say("another start is installing the trainer's packages.")
        except (Failure, OSError) as error:
            fail(str(error))


def report() -> None:
    """Print what is missing and how to add it; change nothing."""
    found = environment.python()
    if found:
        say(f"everything that training needs is installed; training runs with {found}.")
        return
    for line in environment.missing():
        say(line)
    say(f"install it with: {environment.install_command()} (without PU_UNLEARN_INSTALL=off)")
    say("an environment elsewhere is named by PU_UNLEARN_PYTHON.")


def fail(reason: str) -> None:
    """Print why the installation failed and keep it for the nodes."""
    say(f"the trainer's packages could not be installed: {reason}")
    try:
        environment.FAILED.write_text(reason + "\n", encoding="utf-8")
    except OSError as error:
        say(f"{environment.FAILED} cannot be written: {error.strerror}")


@contextlib.contextmanager
def locked() -> Iterator[bool]:
    """Hold the lock that keeps two starts from installing at once. Yields: whether this process holds it.

    The system releases it when the process ends, however it ends.
    """
    environment.STATE.mkdir(exist_ok=True)
    with (environment.STATE / "lock").open("a+b") as file:
        try:
            if sys.platform == "win32":
                import msvcrt

                file.seek(0)
                msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)
            else:
                import fcntl

                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            yield False
        else:
            yield True


def install() -> None:
    """See to it that one Python can train. Raises: Failure, OSError."""
    if found := ready():
        environment.FAILED.unlink(missing_ok=True)
        say(f"everything that training needs is installed; training runs with {found}.")
        return
    for line in environment.missing():
        say(line)
    with tempfile.TemporaryDirectory(dir=environment.STATE, prefix="work-") as folder:
        work = Path(folder)
        pip = fetched_pip(work)
        python = sys.executable
        if not added_to_host(pip, work):
            python = own_environment(pip, work)
    environment.FAILED.unlink(missing_ok=True)
    say(f"done; training runs with {python}.")


def ready() -> str | None:
    """Return the Python that can train as things are, or None. Runs the import check where its result is unknown."""
    candidates = [sys.executable] if not environment.missing() else []
    if environment.own_python().exists():
        candidates.append(str(environment.own_python()))
    for python in candidates:
        error = environment.known_error(python)
        if error is None:
            say(f"checking the packages of {python}")
            error = environment.record(python)
        if not error:
            return python
        say(f"{python} cannot train: {error}")
    return None


# --- pip


def run(command: Sequence[str | Path], what: str) -> str:
    """Run a program. Return what it printed. Raises: Failure with the reason in one line."""
    variables = {k: v for k, v in environment.child_variables().items() if k not in NOT_FOR_PIP}
    try:
        done = subprocess.run(
            [str(word) for word in command],
            env={**variables, **QUIET},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            encoding="utf-8",
            errors="replace",
        )
    except OSError as error:
        raise Failure(f"{what}: {error}") from None
    if done.returncode:
        raise Failure(f"{what}: {reason_of(done.stderr + done.stdout)}")
    return done.stdout


def reason_of(output: str) -> str:
    """Return what a failed program printed as one line for people."""
    for pattern, reason in REASONS:
        if re.search(pattern, output):
            return reason
    lines = [line.strip() for line in output.splitlines() if line.strip()]
    errors = [line for line in lines if line.lower().startswith("error")]
    return (errors or lines or ["no reason given"])[-1]


def fetched_pip(work: Path) -> Path:
    """Return a current pip in the working folder, started as `python FOLDER`: hosts have old ones, or none.

    Raises: Failure if nothing can fetch it.
    """
    say("fetching a current pip")
    target = work / "pip"
    what = "pip cannot be fetched"
    reasons = []
    for command in pip_fetchers(target):
        try:
            run(command, what)
            return target / "pip"
        except (Failure, OSError) as error:
            reasons.append(str(error))
    raise Failure(reasons[0] if reasons else f"{sys.executable} has no pip. Install pip or uv, then run this again")


def pip_fetchers(target: Path) -> Iterator[list[str | Path]]:
    """Yield command lines that put a current pip into a folder: by the host's pip, ensurepip's own wheel, or uv."""
    words: list[str | Path] = ["install", "--quiet", "--no-user", "--target", target, "pip"]
    if importlib.util.find_spec("pip"):
        yield [sys.executable, *flags(), "-m", "pip", *words]
    for wheel in bundled_wheels():
        yield [sys.executable, *flags(), wheel / "pip", *words]
    uv = [shutil.which("uv")] if shutil.which("uv") else [sys.executable, "-m", "uv"]
    if shutil.which("uv") or importlib.util.find_spec("uv"):
        yield [*map(str, uv), "pip", "install", "--quiet", "--python", sys.executable, "--target", target, "pip"]


def bundled_wheels() -> list[Path]:
    """Return the wheel of pip that comes with Python; systems keep it in other folders."""
    folders = [sysconfig.get_config_var("WHEEL_PKG_DIR")]
    spec = importlib.util.find_spec("ensurepip")
    if spec and spec.origin:
        folders.append(str(Path(spec.origin).parent / "_bundled"))
    return [wheel for folder in folders if folder for wheel in sorted(Path(folder).glob("pip-*.whl"))]


def flags() -> list[str | Path]:
    """Return `-s` where this Python ignores the packages in the user's home."""
    return ["-s"] if sys.flags.no_user_site else []


class Pip:
    """A pip that works on the packages of one Python."""

    def __init__(self, pip: Path, python: str | Path, work: Path) -> None:
        self.python, self.work = python, work
        self.start = [python, *(flags() if str(python) == sys.executable else []), pip]

    def installed(self) -> dict[str, str]:
        """Return the version of each package by its name, whether it came from an index, a folder or a repository."""
        found = json.loads(run([*self.start, "list", "--format", "json"], "the installed packages cannot be listed"))
        return {canonical(item["name"]): item["version"] for item in found}

    def resolve(
        self, requirements: Iterable[str], fixed: Mapping[str, str], index: Sequence[str] = ()
    ) -> dict[str, str]:
        """Return the versions by name that an installation would add or change.

        Args: fixed: versions by name that must stay as they are.
        """
        constraints, report = self.work / "constraints.txt", self.work / "report.json"
        constraints.write_text("".join(f"{k}=={v}\n" for k, v in fixed.items() if is_version(v)), encoding="utf-8")
        words: list[str | Path] = [
            "install",
            "--dry-run",
            "--quiet",
            "--only-binary",
            ":all:",
            "--report",
            report,
            "-c",
            constraints,
        ]
        run([*self.start, *words, *index, *requirements], "no set of versions was found")
        items = json.loads(report.read_text(encoding="utf-8"))["install"]
        return {canonical(item["metadata"]["name"]): item["metadata"]["version"] for item in items}

    def add(self, packages: Mapping[str, str], index: Sequence[str] = ()) -> None:
        """Download all, check the room on the disk, then install: what can fail fails before anything is written."""
        names = [f"{name}=={version}" for name, version in packages.items()]
        shown = ", ".join(list(names)[:SHOWN]) + (f" and {len(names) - SHOWN} more" if len(names) > SHOWN else "")
        wheels = Path(tempfile.mkdtemp(dir=self.work))
        say(f"downloading {shown}" + (" (gigabytes)" if "torch" in packages else ""))
        words: list[str | Path] = ["download", "--quiet", "--no-deps", "--only-binary", ":all:", "--dest", wheels]
        run([*self.start, *words, *index, *names], "the download failed")
        files = sorted(wheels.iterdir())
        check_room(files, Path(sys.prefix) if str(self.python) == sys.executable else environment.OWN)
        say(f"installing {len(files)} packages")
        words = ["install", "--quiet", "--no-index", "--find-links", wheels, "--no-deps", "--ignore-installed"]
        run([*self.start, *words, "--no-user", *names], "the installation failed")

    def remove(self, names: Iterable[str]) -> None:
        if names := list(names):
            run([*self.start, "uninstall", "--quiet", "--yes", *names], "what was added cannot be removed again")


def canonical(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def is_version(text: str) -> bool:
    """Return whether pip takes a version in a constraints file; old packages have versions that it does not."""
    return re.fullmatch(r"v?(\d+!)?\d+(\.\d+)*([-_.]?(a|b|c|rc|alpha|beta|pre|preview|post|rev|r|dev)[-_.]?\d*)*"
                        r"(-\d+)?(\+[a-z0-9]+([-_.][a-z0-9]+)*)?", text.lower()) is not None  # fmt: skip


def check_room(wheels: Iterable[Path], folder: Path) -> None:
    """Raises: Failure if the unpacked wheels do not fit on the disk."""
    size = 0
    for wheel in wheels:
        with zipfile.ZipFile(wheel) as archive:
            size += sum(item.file_size for item in archive.infolist())
    free = shutil.disk_usage(folder).free
    if free < size + SPARE_BYTES:
        raise Failure(f"the disk is full: {(size + SPARE_BYTES) >> 20} MiB are needed, {free >> 20} MiB are free")


# --- the host's Python


def added_to_host(pip: Path, work: Path) -> bool:
    """Add what is missing to the host's Python if no installed package changes. Return whether it can train then."""
    host = Pip(pip, sys.executable, work)
    before = host.installed()
    say("looking for versions that change no installed package")
    try:
        packages = host.resolve(environment.REQUIREMENTS, before)
        if changed := sorted(packages.keys() & before.keys()):
            raise Failure(f"{', '.join(changed)} would change")
        if "torch" in packages:
            raise Failure("it has no torch, and which build fits is not for this script to choose there")
        if packages:
            host.add(packages)
    except Failure as failure:
        say(f"{sys.executable} stays as it is: {failure}")
        undo(host, before)
        return False
    environment.forget(sys.executable)
    if error := environment.record(sys.executable):
        say(f"{sys.executable} cannot train with them: {error}")
        undo(host, before)
    return not error


def undo(host: Pip, before: Mapping[str, str]) -> None:
    host.remove(sorted(host.installed().keys() - before.keys()))


# --- an environment of the trainer's own


def own_environment(pip: Path, work: Path) -> str:
    """Make venv/ beside this file: with the host's packages below its own, else with a torch of its own.

    Return its Python. Raises: Failure if neither can train.
    """
    folder = environment.OWN
    if folder.exists() and not (folder / MARK).exists():
        raise Failure(f"{folder} cannot train and was not made by this script; rename it and run this again")
    reasons = []
    for fill in (fill_above_host, fill_alone):
        discard(work)
        try:
            create(pip, work)
            fill(Pip(pip, environment.own_python(), work))
            error = environment.record(environment.own_python())
            if not error:
                return str(environment.own_python())
            raise Failure(f"its packages cannot be imported: {error}")
        except BaseException as failure:
            discard(work)
            if not isinstance(failure, Failure):
                raise
            say(f"this environment will not do: {failure}")
            reasons.append(str(failure))
    raise Failure(reasons[-1])


def discard(work: Path) -> None:
    """Move an environment of ours away, whole: it goes with the working folder."""
    if environment.OWN.exists():
        os.replace(environment.OWN, Path(tempfile.mkdtemp(dir=work)) / "old")
    environment.forget(environment.own_python())


def create(pip: Path, work: Path) -> None:
    """Make the empty environment, by virtualenv where Python comes without venv, as portable ones do."""
    folder = environment.OWN
    folder.mkdir()
    (folder / MARK).write_text("install.py may replace this environment.\n", encoding="utf-8")
    command: list[str | Path] = [sys.executable, *flags()]
    if importlib.util.find_spec("venv"):
        command += ["-m", "venv", "--without-pip", folder]
    else:
        target = work / "virtualenv"
        words: list[str | Path] = ["install", "--quiet", "--no-user", "--target", target, "virtualenv"]
        run([*command, pip, *words], "virtualenv cannot be fetched")
        code = (
            "import runpy, sys; sys.path.insert(0, sys.argv.pop(1)); runpy.run_module('virtualenv', None, '__main__')"
        )
        command += ["-c", code, target, "--no-seed", folder]
    run(command, f"{folder} cannot be made")


def fill_above_host(own: Pip) -> None:
    """Add to the host's packages, which keep their place, what is missing or does not fit. Raises: Failure."""
    fixed = {name: environment.installed(name) for name in SHARED}
    if not fixed["torch"]:
        raise Failure("the host has no torch")
    say("making an environment for the trainer that uses the host's torch")
    code = "import sysconfig; print(sysconfig.get_path('purelib'))"
    packages = Path(run([own.python, "-c", code], "the environment does not start").strip())
    hosts = [path for path in sys.path if Path(path).name in ("site-packages", "dist-packages")]
    lines = "".join(f"import site; site.addsitedir({path!a})\n" for path in hosts)
    (packages / "pu_unlearn_host.pth").write_text(lines, encoding="ascii")
    found = own.resolve(environment.REQUIREMENTS, {name: version for name, version in fixed.items() if version})
    own.add(found)


def fill_alone(own: Pip) -> None:
    """Install all packages, torch first, from the index that fits the host's build. Raises: Failure."""
    index = torch_index(environment.installed("torch"))
    say(f"making an environment for the trainer with a torch of its own{f' from {index}' if index else ''}")
    options = ["--index-url", index] if index else []
    torch = own.resolve([environment.REQUIREMENTS[0]], {}, options)
    own.add(torch, options)
    own.add(own.resolve(environment.REQUIREMENTS, torch))


def torch_index(version: str | None) -> str | None:
    """Return the address of PyTorch's wheels for the card that the host's torch was built for; None: pip's own index.

    Args: version: of the host's torch, such as 2.3.1+cu121.
    """
    build = (version or "").partition("+")[2]
    cuda = re.match(r"cu(\d+)", build)
    if cuda:  # older builds have no torch that is new enough; the drivers of a CUDA generation run its later builds
        return f"{TORCH_INDEX}cu{ {'116': '118', '117': '118', '120': '121'}.get(cuda[1], cuda[1]) }"
    if re.match(r"cpu|xpu|rocm", build):
        return TORCH_INDEX + build
    if sys.platform == "win32":  # pip's own index has the CPU build only
        return f"{TORCH_INDEX}cu126" if shutil.which("nvidia-smi") else None
    return None


if __name__ == "__main__":
    main()
