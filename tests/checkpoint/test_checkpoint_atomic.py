"""Whatever happens to a writer, the old file or the new one is there: faults at each call, SIGKILL, a full disk."""

from __future__ import annotations

import errno
import os
import resource
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import secateur
import torch
from secateur.checkpoint.format import atomic
from torch import nn


def model(fill: float, size: int = 40) -> nn.Module:
    made = nn.Sequential(nn.Linear(size, size), nn.Linear(size, 3))
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.fill_(fill)
    return made


class Calls:
    """Stands for ``os``: counts what is asked of it, and fails one of the calls."""

    def __init__(self, fail: int, error: BaseException) -> None:
        self.fail, self.error, self.count, self.done = fail, error, 0, list[str]()

    def __getattr__(self, name: str) -> Any:
        real = getattr(os, name)
        if name not in ("open", "write", "pwrite", "fsync", "link", "close", "replace"):
            return real

        def call(*args: Any, **kwargs: Any) -> Any:
            self.count += 1
            if self.count != self.fail:
                self.done.append(name)
                return real(*args, **kwargs)
            if name == "close":
                real(*args)  # or it would stay open
            if name == "write":
                real(args[0], args[1][:5])  # what came through before it failed
            raise self.error

        return call


@pytest.fixture(params=["nameless", "named"])
def kind(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """Where the file system can, the new file has no name until it is whole."""
    if request.param == "named":
        monkeypatch.setattr(atomic, "_without_name", lambda folder, mode: None)
    elif (file := atomic._without_name(tmp_path, 0o600)) is None:
        pytest.skip("this file system has no files without a name")
    else:
        os.close(file)
    return str(request.param)


@pytest.mark.parametrize("error", [OSError(errno.ENOSPC, "no space"), KeyboardInterrupt(), MemoryError()], ids=repr)
def test_a_fault_at_each_call(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: BaseException, kind: str) -> None:
    path = tmp_path / "f"
    secateur.save(model(2), path)
    new = path.read_bytes()
    secateur.save(model(1), path)
    old = path.read_bytes()
    for fail in range(1, 50):
        calls = Calls(fail, error)
        try:
            with monkeypatch.context() as patch:
                patch.setattr(atomic, "os", calls)
                secateur.save(model(2), path)
        except type(error):
            pass
        else:
            assert calls.count < fail, f"an error at call {fail} was swallowed"
            break
        assert path.read_bytes() == (new if "replace" in calls.done else old)
        assert [each.name for each in tmp_path.iterdir()] == ["f"]  # and nothing beside it
        path.write_bytes(old)
    named = ["link"] if kind == "nameless" else []
    expected = ["open", *["write"] * 5, "pwrite", "fsync", *named, "replace", "close", "open", "fsync", "close"]
    assert calls.done == expected
    assert path.read_bytes() == new


@pytest.mark.usefixtures("kind")
def test_a_file_system_that_cannot_sync_folders_is_no_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    synced: list[int] = []

    def cannot(file: int) -> None:
        synced.append(file)
        if len(synced) == 2:
            raise OSError(errno.EINVAL, "cannot")

    monkeypatch.setattr(atomic.os, "fsync", cannot)
    secateur.save(model(1), tmp_path / "f")
    assert len(synced) == 2
    secateur.load(tmp_path / "f", model(2))


def test_writes_that_take_a_part_are_continued(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    secateur.save(model(1), tmp_path / "whole")
    write = os.write
    monkeypatch.setattr(atomic.os, "write", lambda file, data: write(file, data[:700]))
    secateur.save(model(1), tmp_path / "parts")
    assert (tmp_path / "parts").read_bytes() == (tmp_path / "whole").read_bytes()


def test_a_process_may_write_no_more(tmp_path: Path) -> None:
    """A limit on the size of files, where a disk cannot be filled: the same error as a full disk, at any byte."""
    path = tmp_path / "f"
    secateur.save(model(1), path)
    old = path.read_bytes()
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    for limit in (0, 8, 500, len(old) - 1):
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, hard))
        try:
            with pytest.raises(OSError, match="File too large"):
                secateur.save(model(2), path)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        assert path.read_bytes() == old
        assert [each.name for each in tmp_path.iterdir()] == ["f"]


@pytest.mark.parametrize("cannot", [errno.EXDEV, errno.ENOENT, errno.EPERM])
def test_a_system_that_gives_no_names_has_a_copy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cannot: int) -> None:
    """Without /proc, or in a sandbox, a file that has no name keeps none."""

    def link(*args: Any, **kwargs: Any) -> None:
        raise OSError(cannot, os.strerror(cannot))

    secateur.save(model(2), tmp_path / "g")
    path = tmp_path / "f"
    path.touch(0o640)
    monkeypatch.setattr(atomic.os, "link", link)
    for name in ("f", "new"):
        secateur.save(model(2), tmp_path / name)
        assert (tmp_path / name).read_bytes() == (tmp_path / "g").read_bytes()
    assert path.stat().st_mode & 0o777 == 0o640
    assert sorted(each.name for each in tmp_path.iterdir()) == ["f", "g", "new"]


# ---- modes, names ----


@pytest.mark.usefixtures("kind")
@pytest.mark.parametrize("mask", [0o022, 0o077, 0o002, 0])
def test_a_new_file_has_the_mode_that_open_gives(tmp_path: Path, mask: int) -> None:
    before = os.umask(mask)
    try:
        (tmp_path / "plain").write_bytes(b"")
        secateur.save(model(1), tmp_path / "f")
    finally:
        os.umask(before)
    assert (tmp_path / "f").stat().st_mode == (tmp_path / "plain").stat().st_mode


@pytest.mark.usefixtures("kind")
@pytest.mark.parametrize("mode", [0o600, 0o640, 0o664, 0o444])
def test_a_file_that_is_replaced_keeps_its_mode(tmp_path: Path, mode: int) -> None:
    path = tmp_path / "f"
    path.touch()
    path.chmod(mode)
    for _ in range(2):
        secateur.save(model(1), path)
        assert path.stat().st_mode & 0o777 == mode


@pytest.mark.usefixtures("kind")
def test_errors_name_the_path_that_was_given(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "closed").mkdir()
    places = {
        "no/f": FileNotFoundError, "no/such/f": FileNotFoundError, "file/f": NotADirectoryError,
        "closed/" + "x" * 300: OSError,
    }  # fmt: skip
    for place, kind in places.items():
        for path in (tmp_path / place, str(tmp_path / place)):
            with pytest.raises(kind) as raised:
                secateur.save(model(1), path)
            assert raised.value.filename == str(path)
            assert ".tmp" not in str(raised.value)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(FileNotFoundError, match=r"No such file or directory: 'no/f'$"):
        secateur.save(model(1), "no/f")


# ---- what killed writers leave ----


def left(path: Path, name: str = "12345678") -> Path:
    """What a killed writer left beside ``path``, where files without a name are not to be had."""
    made = path.with_name(f"{atomic._prefix(path)}{name}.tmp")
    made.write_bytes(b"half")
    return made


@pytest.mark.usefixtures("kind")
def test_the_next_save_takes_away_what_a_killed_one_left(tmp_path: Path) -> None:
    path, other = tmp_path / "f", tmp_path / "g"
    left(path, "00000001"), left(path, "00000002")
    kept = left(other)
    (tmp_path / ".0123456789abcdef.tmp").touch()  # of another program
    secateur.save(model(1), path)
    names = {each.name for each in tmp_path.iterdir()}
    assert names == {"f", kept.name, ".0123456789abcdef.tmp"}
    secateur.save(model(1), other)
    assert not kept.exists()


def test_a_writer_that_is_at_work_is_left_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two writers of one path: the second begins and ends while the first writes."""
    monkeypatch.setattr(atomic, "_without_name", lambda folder, mode: None)
    path = tmp_path / "f"

    def pieces() -> Iterator[bytes]:
        yield b"first "
        assert len(list(tmp_path.iterdir())) == 1
        atomic.write(path, [b"second"])
        assert path.read_bytes() == b"second"
        assert len(list(tmp_path.iterdir())) == 2
        yield b"writer"

    atomic.write(path, pieces())
    assert path.read_bytes() == b"first writer"
    assert [each.name for each in tmp_path.iterdir()] == ["f"]


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    folder = tmp_path / "disk"
    folder.mkdir()
    try:
        done = subprocess.run(
            ["mount", "-t", "tmpfs", "-o", "size=64k", "none", str(folder)], capture_output=True, text=True, check=False
        )
    except FileNotFoundError:
        pytest.skip("there is no mount here")
    if done.returncode:
        pytest.skip(f"a small disk cannot be mounted here: {done.stderr.strip()}")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def test_a_full_disk(small_disk: Path) -> None:
    path = small_disk / "f"
    secateur.save(model(1, 90), path)  # half of the disk
    old = path.read_bytes()
    (small_disk / "other").write_bytes(b"x" * 10_000)
    with pytest.raises(OSError, match="No space left on device"):
        secateur.save(model(2, 90), path)
    assert path.read_bytes() == old
    assert sorted(each.name for each in small_disk.iterdir()) == ["f", "other"]
    with pytest.raises(OSError, match="No space left on device"):
        secateur.save(model(2, 90), small_disk / "new")
    assert not (small_disk / "new").exists()


KILLED = """
import os, random, signal, sys, time
import secateur, torch
from torch import nn

torch.set_num_threads(1)  # this process forks
path = sys.argv[1]
random.seed(0)
models = {}
for fill in (1.0, 2.0):
    models[fill] = nn.Linear(120, 120)
    nn.init.constant_(models[fill].weight, fill)
target = nn.Linear(120, 120)
secateur.save(models[1.0], path)
found, rounds, longest, end = set(), 0, 0.02, time.monotonic() + 100
while rounds < 30 or (len(found) < 2 and time.monotonic() < end):
    child = os.fork()
    if child == 0:
        while True:
            for fill in (2.0, 1.0):
                secateur.save(models[fill], path)
    time.sleep(random.uniform(0.001, longest))
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    secateur.load(path, target)
    values = set(target.weight.flatten().tolist())
    assert len(values) == 1, values
    found |= values
    rounds += 1
    longest = min(longest * 1.2, 0.3)  # a busy machine may not come as far as the first save
print(sorted(found))
secateur.save(models[1.0], path)
print(os.listdir(os.path.dirname(path)))
"""


def test_a_killed_writer_leaves_the_old_file_or_the_new_one(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", KILLED, str(tmp_path / "f")],
        capture_output=True, text=True, check=False, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    # It was killed after either, and what it left is gone.
    assert done.stdout == "[1.0, 2.0]\n['f']\n"
