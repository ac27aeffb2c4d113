"""Files that are either whole or absent: atomic writes, hashes, a lock. May be imported by every module."""

import contextlib
import errno
import glob
import hashlib
import os
import re
import shutil
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from filelock import FileLock, Timeout

from .errors import UserError

FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS)  # also for this user, or for a file of that size (FAT)
WAITS_S = (0.05, 0.1, 0.2, 0.4, 0.8, 1.5)  # between tries to rename
DISK = (*FULL, errno.EACCES, errno.EPERM, errno.ENAMETOOLONG, errno.ENOTDIR)


@contextlib.contextmanager
def replacing(target: Path, *, durable: bool = True) -> Iterator[Path]:
    """Yield a temporary path beside target; rename it onto target if the block succeeds, remove it if it fails.

    It lies in a folder of its own, for what writes it (safetensors, for one) may have temporary files, too.

    Args: durable: fsync before the rename, and remove what a killed process left of the same target; what can be made
        again (caches) does without.
    Raises: OSError with target as its file, also where the library that writes has an error of its own.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    prefix = f".{target.name}." if durable else "."
    if durable:
        for torn in target.parent.glob(glob.escape(prefix) + "?" * 8):
            shutil.rmtree(torn, ignore_errors=True)
    folder = Path(tempfile.mkdtemp(dir=target.parent, prefix=prefix))
    temporary = folder / f"new{target.suffix}"
    try:
        yield temporary
        if durable:
            with open(temporary, "rb+") as file:
                os.fsync(file.fileno())
        temporary.chmod(0o666 & ~_umask())  # safetensors makes it private; a LoRA is read by other programs' users
        rename(temporary, target)
    except Exception as error:
        raise_for(target, error, folder)
        raise
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def rename(source: Path, target: Path) -> None:
    """Rename onto target. Windows refuses as long as a scanner or a viewer holds it: try again for three seconds."""
    for wait_s in (*WAITS_S, None):
        try:
            os.replace(source, target)
        except PermissionError:
            if wait_s is None or target.is_dir():
                raise
            time.sleep(wait_s)
        else:
            return


def raise_for(target: Path, error: Exception, folder: Path) -> None:
    """Raise an OSError that names target, if error is the system's and about what was written in folder for it."""
    if isinstance(error, OSError):
        if error.filename is None or str(error.filename).startswith(str(folder)):
            raise OSError(error.errno, error.strerror, str(target)) from error
    elif found := re.search(r"([^:]*) \(os error (\d+)\)", str(error)):  # of safetensors, which is written in Rust
        text, number = found[1].strip(), int(found[2])
        # Windows has numbers of its own, which Python translates when it gets them in their place
        windows = (number,) if os.name == "nt" else ()
        raise OSError(number, text, str(target), *windows) from error


def write_text(target: Path, text: str) -> None:
    with replacing(target) as temporary:
        temporary.write_text(text, encoding="utf-8")


def describe_write_error(error: BaseException) -> str | None:
    """Describe an error of the disk (full, or not writable) in a sentence. Returns: None for any other error."""
    if not isinstance(error, OSError) or error.errno not in DISK:
        return None
    verb = "write" if error.errno in FULL else "read or write"
    return f"cannot {verb} {error.filename or 'to the disk'}: {error.strerror}"


def sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Hold folder for this process. Raises: UserError if another process holds it."""
    folder.mkdir(parents=True, exist_ok=True)
    lock = FileLock(folder / ".lock")
    try:
        lock.acquire(timeout=0)
    except Timeout:
        raise UserError(f"{folder}: another run is using this folder. Wait for it, or use another one.") from None
    except (OSError, NotImplementedError) as error:  # NFS without its lock service, some network drives
        if getattr(error, "errno", None) in (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOSPC):
            raise
        reason = getattr(error, "strerror", None) or error
        raise UserError(
            f"{folder}: this disk gives no locks ({reason}), so two runs could spoil each other's files. "
            "Put the output on a local disk (--output-dir), or switch on the network drive's locks."
        ) from None
    try:
        yield
    finally:
        lock.release()


@contextlib.contextmanager
def replacing_folder(target: Path) -> Iterator[Path]:
    """Yield a folder beside target; rename it onto target if the block succeeds. Remove what a killed process left."""
    new, old = (target.with_name(f".{target.name}.{age}") for age in ("new", "old"))
    shutil.rmtree(new, ignore_errors=True)
    try:
        yield new
        shared = (new / "model_index.json").stat().st_mode
        for file in (path for path in new.rglob("*") if path.is_file()):
            file.chmod(shared)  # safetensors makes its files private
            with open(file, "rb+") as written:
                os.fsync(written.fileno())
        shutil.rmtree(old, ignore_errors=True)
        if target.exists():  # a folder cannot be renamed onto one that is not empty
            target.rename(old)
        try:
            new.rename(target)
        except OSError:
            if old.exists():
                old.rename(target)
            raise
        shutil.rmtree(old, ignore_errors=True)
    except Exception as error:
        raise_for(target, error, new)
        raise
    finally:
        shutil.rmtree(new, ignore_errors=True)


def free_path(path: Path) -> Path:
    """Return the path, or NAME-2, NAME-3, … with the same suffix: the first that does not exist."""
    number, candidate = 1, path
    while candidate.exists():
        number += 1
        candidate = path.with_name(f"{path.stem}-{number}{path.suffix}")
    return candidate
