"""install.py: every branch against a pretended pip (fast), and real environments with the real one (slow)."""

import importlib.util
import json
import os
import shutil
import subprocess
import sys
import threading
import time
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
READY = {"torch": "2.9.0+cu128", "transformers": "4.57.1", "huggingface-hub": "0.36.0"}


@pytest.fixture
def install(monkeypatch, tmp_path):
    """install.py as a fresh module whose files lie in a folder of the test's own."""
    spec = importlib.util.spec_from_file_location("install_under_test", ROOT / "install.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    environment = module.environment
    for name, path in (("OWN", "venv"), ("STATE", ".install"), ("FAILED", "install-failed.txt")):
        monkeypatch.setattr(environment, name, tmp_path / path)
    monkeypatch.setattr(environment, "CHECKED", tmp_path / ".install" / "checked.json")
    own = tmp_path / "venv" / "bin" / "python"
    monkeypatch.setattr(environment, "own_python", lambda: own)
    for name in ("PU_UNLEARN_PYTHON", "PU_UNLEARN_INSTALL"):
        monkeypatch.delenv(name, raising=False)
    return module


class World:
    """Pretends to be pip, venv and the import check: what is installed where, and what goes wrong."""

    def __init__(self, install, monkeypatch):
        self.install, self.environment = install, install.environment
        self.host, self.own = dict(READY), {}
        self.adds = {"diffusers": "0.35.2", "peft": "0.18.0"}  # what a resolution answers: by name
        self.own_adds = {"diffusers": "0.42.1", "transformers": "5.0.0"}
        self.alone_adds = {"torch": "2.9.1", "diffusers": "0.42.1"}
        self.errors = {}  # word of a command, or of a command and its target -> what the program prints when it fails
        self.import_errors = {}  # "host", "above host" or "alone" -> error
        self.commands = []
        monkeypatch.setattr(install, "run", self.run)
        monkeypatch.setattr(self.environment, "missing", self.missing)
        monkeypatch.setattr(self.environment, "installed", lambda name: self.host.get(name))
        monkeypatch.setattr(self.environment, "import_error", self.import_error)

    @property
    def is_above_host(self):
        return (self.environment.OWN / "pu_unlearn_host.pth").exists()

    def missing(self):
        return [] if "diffusers" in self.host else ["diffusers is missing (needed: >=0.35)"]

    def import_error(self, python):
        kind = "host" if str(python) == sys.executable else "above host" if self.is_above_host else "alone"
        return self.import_errors.get(kind, "")

    def run(self, command, what):
        words = [str(word) for word in command]
        self.commands.append(words)
        is_own = words[0] == str(self.environment.own_python())
        target = "own" if is_own else "host"
        for key, output in self.errors.items():
            if set(key.split()) <= {*words, target}:
                raise self.install.Failure(f"{what}: {self.install.reason_of(output)}")
        packages = self.own if is_own else self.host
        if "--target" in words:
            Path(words[words.index("--target") + 1], words[-1]).mkdir(parents=True)
        elif "venv" in words or "--no-seed" in words:
            self.environment.own_python().parent.mkdir(parents=True)
            self.environment.own_python().touch()
            self.own.clear()
        elif "list" in words:
            return json.dumps([{"name": name.replace("-", "_"), "version": v} for name, v in packages.items()])
        elif "--dry-run" in words:
            found = self.adds if not is_own else self.own_adds if self.is_above_host else self.alone_adds
            items = [{"metadata": {"name": name, "version": version}} for name, version in found.items()]
            Path(words[words.index("--report") + 1]).write_text(json.dumps({"install": items}))
        elif "download" in words:
            for name in words[words.index("--dest") + 2 :]:
                if "==" in name:
                    self.make_wheel(Path(words[words.index("--dest") + 1]) / f"{name}.whl")
        elif "uninstall" in words:
            for name in words[words.index("--yes") + 1 :]:
                del packages[name]
        elif "install" in words:
            packages.update(word.split("==") for word in words if "==" in word)
        else:
            assert "sysconfig" in words[-1]
            return f"{self.environment.OWN}\n"
        return ""

    @staticmethod
    def make_wheel(path):
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("x", b"0" * 1000)

    def words(self, *wanted):
        return [command for command in self.commands if set(wanted) <= set(command)]

    def left(self):
        return sorted(path.name for path in self.environment.STATE.iterdir() if path.name.startswith("work"))


@pytest.fixture
def world(install, monkeypatch):
    return World(install, monkeypatch)


def test_what_fits_is_added_to_the_host_and_nothing_changes(world, install, capsys):
    install.main()
    assert world.host == {**READY, **world.adds}
    assert install.environment.python() == sys.executable
    assert capsys.readouterr().out.splitlines()[-1] == f"PU Unlearn: done; training runs with {sys.executable}."
    assert not install.environment.FAILED.exists()
    assert not install.environment.OWN.exists()
    assert world.left() == []
    count = len(world.commands)
    install.main()  # the second start looks once and starts no program
    assert len(world.commands) == count
    assert "everything that training needs is installed" in capsys.readouterr().out


def test_every_step_prints_one_line(world, install, capsys):
    install.main()
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 6
    assert all(line.startswith("PU Unlearn: ") for line in lines)


def test_the_installed_versions_are_the_constraints(world, install, monkeypatch):
    """Also of editable, VCS and local installs, for which a freeze names files; not of what pip cannot read."""
    world.host |= {"some-tool": "0.1.0", "old": "2004d-unknown"}
    seen = []
    run = install.run

    def look(command, what):
        if "-c" in command and "--dry-run" in command:
            seen.append(Path(command[command.index("-c") + 1]).read_text().splitlines())
        return run(command, what)

    monkeypatch.setattr(install, "run", look)
    install.main()
    assert seen == [["torch==2.9.0+cu128", "transformers==4.57.1", "huggingface-hub==0.36.0", "some-tool==0.1.0"]]


@pytest.mark.parametrize(
    "version", ["1", "1.2.3", "2.9.0+cu128", "1!2.0", "1.0rc1", "2.10.0.dev20251001+cu130", "1.post2"]
)
def test_versions_that_pip_reads(install, version):
    assert install.is_version(version)


@pytest.mark.parametrize("version", ["", "unknown", "2004d-unknown", "1.0 beta", "@ file:///x"])
def test_versions_that_pip_does_not_read(install, version):
    assert not install.is_version(version)


def test_a_resolution_that_would_change_the_host_makes_an_own_environment(world, install, capsys):
    world.adds = {"diffusers": "0.42.1", "huggingface-hub": "2.0.0"}
    install.main()
    assert world.host == READY
    assert world.own == world.own_adds
    assert "huggingface-hub would change" in capsys.readouterr().out
    assert install.environment.python() == str(install.environment.own_python())
    assert not world.words("install", "--no-index", sys.executable)


def test_a_host_without_torch_gets_none(world, install):
    del world.host["torch"]
    world.adds["torch"] = "2.9.1"
    install.main()
    assert world.host == {name: version for name, version in READY.items() if name != "torch"}
    assert world.own == world.alone_adds


def test_a_conflict_makes_an_own_environment_above_the_host(world, install):
    world.errors = {"--dry-run host": "ERROR: ResolutionImpossible"}
    install.main()
    assert world.host == READY
    (line, *_) = (install.environment.OWN / "pu_unlearn_host.pth").read_text().splitlines()
    assert "site.addsitedir(" in line
    assert len(world.words("--dry-run", str(install.environment.own_python()))) == 1  # no second torch is looked for


def test_an_environment_above_the_host_keeps_its_torch(world, install):
    world.errors = {"--dry-run host": "ERROR: ResolutionImpossible"}
    seen = {}
    run = install.run

    def look(command, what):
        if "--dry-run" in command and str(command[0]) != sys.executable:
            seen["constraints"] = Path(command[command.index("-c") + 1]).read_text()
        return run(command, what)

    install.run = look
    install.main()
    assert seen["constraints"] == "torch==2.9.0+cu128\n"


@pytest.mark.parametrize("what", ["externally-managed-environment", "Permission denied", "No space left on device"])
def test_an_installation_that_fails_midway_is_taken_back(world, install, what):
    run = install.run

    def half(command, text):
        if "--no-index" in command and str(command[0]) == sys.executable:
            world.host["peft"] = "0.18.0"  # the first of two, then it fails
            raise install.Failure(f"{text}: {install.reason_of(what)}")
        return run(command, text)

    install.run = half
    install.main()
    assert world.host == READY
    assert install.environment.python() == str(install.environment.own_python())


def test_an_addition_that_cannot_be_imported_is_taken_back(world, install, capsys):
    world.import_errors = {"host": "ImportError: broken"}
    install.main()
    assert world.host == READY
    assert "cannot train with them: ImportError: broken" in capsys.readouterr().out
    assert install.environment.python() == str(install.environment.own_python())


def test_a_torch_of_its_own_where_the_hosts_does_not_do(world, install):
    """torch comes from the index of the host's build, the rest from pip's own."""
    world.host["torch"] = "2.3.1+cu121"
    world.errors = {"--dry-run host": "ResolutionImpossible"}
    world.import_errors = {"above host": "ImportError: torch too old"}
    install.main()
    assert world.own == world.alone_adds
    assert not world.is_above_host
    address = "https://download.pytorch.org/whl/cu121"
    (torch,) = world.words("--dry-run", "--index-url")
    assert torch[torch.index("--index-url") + 1 :] == [address, "torch>=2.5"]
    assert install.environment.python() == str(install.environment.own_python())


@pytest.mark.parametrize(
    ("version", "build"),
    [
        ("2.0.1+cu117", "cu118"),
        ("2.7.1+cu118", "cu118"),
        ("2.2.0+cu120", "cu121"),
        ("2.9.0+cu128", "cu128"),
        ("2.10.0+cu130", "cu130"),
        ("2.6.0+rocm6.2.4", "rocm6.2.4"),
        ("2.8.0+cpu", "cpu"),
        ("2.8.0+xpu", "xpu"),
    ],
)
def test_the_index_fits_the_hosts_build(install, version, build):
    assert install.torch_index(version) == f"https://download.pytorch.org/whl/{build}"


@pytest.mark.parametrize(
    ("platform", "has_card", "build"), [("linux", True, None), ("win32", True, "cu126"), ("win32", False, None)]
)
def test_the_index_of_a_torch_that_names_no_build(install, monkeypatch, platform, has_card, build):
    """On Linux pip's own index has the CUDA build, on Windows only the one for the CPU."""
    monkeypatch.setattr(install.sys, "platform", platform)
    monkeypatch.setattr(install.shutil, "which", lambda name: "nvidia-smi" if has_card else None)
    assert install.torch_index("2.9.0") == (f"https://download.pytorch.org/whl/{build}" if build else None)


FAILURES = {
    "no network": ("Retrying: NewConnectionError", "the package index cannot be reached"),
    "no disk": ("OSError: [Errno 28] No space left on device", "the disk is full"),
    "no permission": ("PermissionError: [Errno 13] Permission denied: '/x'", "no permission to write there"),
    "no fit": ("ERROR: No matching distribution found for torch>=2.5", "the requirements conflict"),
}


@pytest.mark.parametrize("kind", FAILURES)
@pytest.mark.parametrize("step", ["--target", "download", "--dry-run", "--no-index", "venv"])
def test_a_failure_leaves_the_host_as_it_was_and_is_one_line_for_the_nodes(world, install, capsys, step, kind):
    output, sentence = FAILURES[kind]
    world.errors = {step: output}
    if step == "venv":
        world.errors["--dry-run host"] = "ResolutionImpossible"
    install.main()  # and so exits with 0
    assert world.host == READY
    reason = install.environment.FAILED.read_text()
    assert sentence in reason
    assert len(reason.splitlines()) == 1
    assert reason.strip() in capsys.readouterr().out
    assert install.environment.python() is None
    assert f"The last installation failed: {reason.strip()}." in install.environment.advice()
    assert not install.environment.OWN.exists()
    assert world.left() == []
    world.errors = {}
    install.main()
    assert not install.environment.FAILED.exists()
    assert install.environment.python()


def test_a_full_disk_is_found_before_anything_is_written(world, install, monkeypatch):
    usage = shutil.disk_usage(".")
    monkeypatch.setattr(install.shutil, "disk_usage", lambda path: usage._replace(free=1000))
    install.main()
    assert world.host == READY
    assert not world.words("--no-index")
    assert install.environment.FAILED.read_text().startswith("the disk is full: 200 MiB are needed, 0 MiB are free")


def test_a_folder_that_cannot_be_written_is_said(install, monkeypatch, capsys):
    def refuse(*_, **__):
        raise PermissionError(13, "Permission denied", "/pack/.install")

    monkeypatch.setattr(Path, "mkdir", refuse)
    monkeypatch.setattr(Path, "write_text", refuse)
    install.main()
    said = capsys.readouterr().out
    assert "could not be installed: [Errno 13] Permission denied: '/pack/.install'" in said
    assert "install-failed.txt cannot be written: Permission denied" in said


def test_two_starts_do_not_install_twice(world, install, capsys):
    """The second one finds the lock held and leaves; the system releases a dead process's."""
    inside, go_on = threading.Event(), threading.Event()
    run = install.run

    def slow(command, what):
        inside.set()
        assert go_on.wait(10)
        return run(command, what)

    install.run = slow
    first = threading.Thread(target=install.main)
    first.start()
    assert inside.wait(10)
    install.main()
    assert "another start is installing" in capsys.readouterr().out
    go_on.set()
    first.join(10)
    assert len(world.words("--dry-run")) == 1
    with install.locked() as is_ours:
        assert is_ours


def test_an_environment_of_ours_that_no_longer_fits_is_made_again(world, install):
    world.errors = {"--dry-run host": "ResolutionImpossible"}
    install.main()
    world.host["torch"] = "2.10.0+cu130"  # the user's update
    world.import_errors = {"above host": "OSError: undefined symbol"}
    install.main()
    assert not world.is_above_host
    assert install.environment.python() == str(install.environment.own_python())


def test_the_users_own_environment_is_never_replaced(world, install):
    own = install.environment.own_python()
    own.parent.mkdir(parents=True)
    own.touch()
    install.main()
    assert install.environment.python() == str(own)
    install.environment.forget(own)
    world.import_errors = {"alone": "ModuleNotFoundError: No module named 'diffusers'"}
    world.errors = {"--dry-run host": "ResolutionImpossible"}
    install.main()
    assert own.exists()
    assert "was not made by this script" in install.environment.FAILED.read_text()


def test_off_reports_and_changes_nothing(world, install, monkeypatch, capsys, tmp_path):
    monkeypatch.setenv("PU_UNLEARN_INSTALL", "off")
    install.main()
    said = capsys.readouterr().out
    assert "diffusers is missing" in said
    assert install.environment.install_command() in said
    assert world.commands == []
    assert list(tmp_path.iterdir()) == []
    world.host["diffusers"] = "0.35.2"
    install.main()
    assert "everything that training needs is installed" in capsys.readouterr().out


def test_an_interpreter_that_the_user_names_is_taken(world, install, monkeypatch, capsys):
    monkeypatch.setenv("PU_UNLEARN_PYTHON", "/own/python")
    install.main()
    assert capsys.readouterr().out == "PU Unlearn: training runs with /own/python.\n"
    assert world.commands == []


# --- where pip comes from


def lookup(*absent):
    real = importlib.util.find_spec
    return lambda name, *rest: None if name in absent else real(name, *rest)


def test_pip_is_the_hosts_own_then_ensurepips_then_uvs(install, monkeypatch, tmp_path):
    monkeypatch.setattr(install.shutil, "which", lambda name: f"/bin/{name}")
    monkeypatch.setattr(install, "bundled_wheels", lambda: [Path("/lib/pip-24.0.whl")])
    commands = [[str(word) for word in command] for command in install.pip_fetchers(tmp_path)]
    assert [command[:4] for command in commands] == [
        [sys.executable, "-m", "pip", "install"],
        [sys.executable, str(Path("/lib/pip-24.0.whl/pip")), "install", "--quiet"],
        ["/bin/uv", "pip", "install", "--quiet"],
    ]
    assert all(command[command.index("--target") + 1] == str(tmp_path) for command in commands)
    monkeypatch.setattr(install.importlib.util, "find_spec", lookup("pip"))
    monkeypatch.setattr(install.shutil, "which", lambda name: None)
    monkeypatch.setattr(install, "bundled_wheels", lambda: [])
    assert list(install.pip_fetchers(tmp_path)) == []


def test_a_python_without_any_pip_says_what_to_do(world, install, monkeypatch):
    monkeypatch.setattr(install, "pip_fetchers", lambda target: iter(()))
    install.main()
    assert "has no pip. Install pip or uv" in install.environment.FAILED.read_text()


def test_the_next_way_to_fetch_pip_is_tried(world, install, monkeypatch):
    monkeypatch.setattr(install.shutil, "which", lambda name: "/bin/uv" if name == "uv" else None)
    monkeypatch.setattr(install, "bundled_wheels", lambda: [])
    world.errors = {"-m --target": "Permission denied"}
    install.main()
    assert install.environment.python() == sys.executable
    assert world.words("/bin/uv", "--target")


def test_a_portable_python_ignores_the_users_packages_and_has_no_venv(world, install, monkeypatch):
    """As Windows' embedded one: started with -s, the environment is made by virtualenv."""
    monkeypatch.setattr(install, "flags", lambda: ["-s"])
    monkeypatch.setattr(install.importlib.util, "find_spec", lookup("venv"))
    world.errors = {"--dry-run host": "ResolutionImpossible"}
    install.main()
    assert all(command[1] == "-s" for command in world.commands if command[0] == sys.executable)
    (made,) = world.words("--no-seed")
    assert made[-1] == str(install.environment.OWN)
    assert world.words("virtualenv", "--target")
    assert install.environment.python() == str(install.environment.own_python())


def test_where_to_install_is_never_the_users_configuration(install, monkeypatch):
    monkeypatch.setenv("PIP_TARGET", "/elsewhere")
    code = "import os; print(os.environ.get('PIP_TARGET'), os.environ['PIP_NO_INPUT'])"
    assert install.run([sys.executable, "-c", code], "x").split() == ["None", "1"]


def test_a_program_that_fails_is_one_line(install):
    code = "import sys; print('ERROR: cannot do it', file=sys.stderr); print('hint: no', file=sys.stderr); sys.exit(1)"
    with pytest.raises(install.Failure, match=r"^the step: ERROR: cannot do it$"):
        install.run([sys.executable, "-c", code], "the step")
    with pytest.raises(install.Failure, match=r"^the step: .*No such file"):
        install.run(["/nowhere/python"], "the step")


@pytest.mark.long
def test_the_import_check_imports_the_whole_trainer():
    from pu_node import environment

    assert environment.import_error(sys.executable) == ""
    assert environment.missing() == []
    assert "No such file" in environment.import_error("/nowhere/python")


def test_the_requirements_are_the_projects():
    tomllib = pytest.importorskip("tomllib")
    from pu_node import environment

    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert list(environment.REQUIREMENTS) == project["dependencies"]


# --- real environments

HOSTS = {  # name -> packages beside torch, what is chosen, and what must be among the additions
    "transformers 4": (["transformers==4.57.1", "huggingface_hub==0.36.0"], "host", "diffusers"),
    "transformers 5": (["transformers>=5.6", "huggingface_hub>=2"], "host", "diffusers"),
    "newest everything": (["transformers", "diffusers", "peft", "accelerate"], "host", "imagehash"),
    "no pip": (["transformers>=5.6"], "host", "diffusers"),
    "older than training needs": (["transformers==4.46.1", "diffusers==0.31.0"], "own", None),
    "no venv": (["transformers==4.46.1", "diffusers==0.31.0"], "own", None),
    "no torch": (None, "own", None),
}
WITHOUT = """
import importlib.util, runpy, sys
real = importlib.util.find_spec
importlib.util.find_spec = lambda name, *rest: None if name == "venv" else real(name, *rest)
runpy.run_path(sys.argv[1], run_name="__main__")
"""


def make_host(folder, packages, has_pip):
    subprocess.run([sys.executable, "-m", "venv", *([] if has_pip else ["--without-pip"]), folder], check=True)
    python = folder / "bin" / "python"
    if packages is not None:
        pip = [sys.executable, "-m", "pip", "--python", python, "-q", "--disable-pip-version-check"]
        subprocess.run([*pip, "install", "torch==2.13.0", *packages], check=True)
    return python


def frozen(python):
    pip = [sys.executable, "-m", "pip", "--python", python, "--disable-pip-version-check"]
    found = subprocess.run([*pip, "freeze", "--all"], check=True, capture_output=True, text=True)
    return set(found.stdout.splitlines())


def copy_of_the_pack(folder):
    for name in ("trainer", "pu_node"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "install.py", folder)
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("name", HOSTS)
def test_a_real_host_can_train_afterwards_and_only_gains(name, tmp_path):
    packages, chosen, added = HOSTS[name]
    python = make_host(tmp_path / "host", packages, has_pip=name != "no pip")
    pack = copy_of_the_pack(tmp_path / "pack")
    before = frozen(python)
    words = ["-c", WITHOUT, pack / "install.py"] if name == "no venv" else [pack / "install.py"]
    started = time.monotonic()
    done = subprocess.run([python, *words], capture_output=True, text=True, cwd="/")
    seconds = time.monotonic() - started
    assert done.returncode == 0, done.stderr
    gained = frozen(python) - before
    print(f"{name}: {seconds:.0f} s\n{done.stdout}", sorted(gained))
    assert before <= frozen(python)
    assert not any(" @ " in line for line in gained)
    assert added is None or any(line.lower().startswith(f"{added}==") for line in gained)
    code = "import sys; sys.path.insert(0, sys.argv[1]); from pu_node import environment as e; print(e.python())"
    found = subprocess.run([python, "-c", code, pack], capture_output=True, text=True, check=True).stdout.strip()
    assert found == str(python if chosen == "host" else pack / "venv" / "bin" / "python"), done.stdout
    assert (gained == set()) == (chosen == "own")
    run = [found, pack / "trainer" / "__main__.py", "--steps", "2", "--rate-images", "0", "--images", "0"]
    trained = subprocess.run([*run, "--output-dir", tmp_path / "out"], capture_output=True, text=True, cwd="/")
    assert trained.returncode == 0, trained.stderr
    if name == "older than training needs":
        assert not list((pack / "venv").rglob("site-packages/torch"))  # the host's is used


@pytest.mark.slow
def test_a_real_host_without_network_stays_as_it_is(tmp_path):
    python = make_host(tmp_path / "host", None, has_pip=True)
    pack = copy_of_the_pack(tmp_path / "pack")
    before = frozen(python)
    variables = {k: v for k, v in os.environ.items() if not k.startswith("PIP_")}
    variables |= {"PIP_CONFIG_FILE": os.devnull, "PIP_INDEX_URL": "http://127.0.0.1:9/", "PIP_RETRIES": "0"}
    done = subprocess.run([python, pack / "install.py"], env=variables, capture_output=True, text=True, cwd="/")
    assert done.returncode == 0, done.stderr
    assert "the package index cannot be reached" in (pack / "install-failed.txt").read_text()
    assert frozen(python) == before
    assert not (pack / "venv").exists()
