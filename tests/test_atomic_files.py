"""Files and folders that are replaced as a whole, whatever happens in between."""

import errno
import os
import random
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest
from safetensors import SafetensorError

from reallm import atomic_files as files
from reallm.atomic_files import atomic_folder, atomic_write, errors_name, recover_folder
from reallm.errors import DataError


def content(folder: Path) -> dict[str, str]:
    return {str(path.relative_to(folder)): path.read_text() for path in folder.rglob("*") if path.is_file()}


def fill(folder: Path, **texts: str) -> None:
    for name, text in texts.items():
        (folder / name).write_text(text)


# Files


def test_a_file_is_written_and_replaced(tmp_path: Path) -> None:
    path = tmp_path / "a" / "b" / "metrics.json"
    for text in ("old", "new"):
        with atomic_write(path) as temporary:
            assert temporary.parent == path.parent
            temporary.write_text(text)
            assert not path.exists() or path.read_text() == "old"
        assert path.read_text() == text
    assert [p.name for p in path.parent.iterdir()] == ["metrics.json"]


def test_an_error_about_another_file_passes_and_leaves_the_old_file(tmp_path: Path) -> None:
    (tmp_path / "x").write_text("old")
    with pytest.raises(FileNotFoundError), atomic_write(tmp_path / "x") as temporary:
        temporary.write_text((tmp_path / "absent").read_text())
    assert content(tmp_path) == {"x": "old"}


def test_nothing_is_left_if_the_disk_fails_once_in_the_look_for_what_to_restore(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    exists, failed = Path.exists, []

    def failing(path: Path) -> bool:
        if path.name.endswith(".reallm-old") and not failed:
            failed.append(path)
            raise OSError(errno.EIO, os.strerror(errno.EIO), str(path))
        return exists(path)

    monkeypatch.setattr(Path, "exists", failing)
    with atomic_write(tmp_path / "x") as temporary:
        temporary.write_text("new")
    assert failed
    assert [path.name for path in tmp_path.iterdir()] == ["x"]


def test_a_lack_of_memory_is_told_of_what_is_saved_but_passes_where_it_may_be_of_others(tmp_path: Path) -> None:
    error = RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 4 bytes")
    told = pytest.raises(DataError, match=r"cannot write .*step-1: more memory is asked for")
    with told, files.errors_name(tmp_path / "step-1"):
        raise error
    with pytest.raises(RuntimeError, match="allocate memory"), atomic_write(tmp_path / "a"):
        raise error
    assert not list(tmp_path.iterdir())


def test_the_permissions_are_those_of_any_new_file(tmp_path: Path) -> None:
    (tmp_path / "plain").touch()
    with atomic_write(tmp_path / "x"):
        pass
    assert (tmp_path / "x").stat().st_mode == (tmp_path / "plain").stat().st_mode


def test_a_path_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(DataError, match=f"cannot write {tmp_path}: it is a folder"), atomic_write(tmp_path):
        pass
    inside = tmp_path / "file" / "x"
    with pytest.raises(DataError, match=f"cannot write {inside}: (Not a directory|File exists)"), atomic_write(inside):
        pass
    with pytest.raises(DataError, match="file: it is a file, not a folder"), atomic_folder(tmp_path / "file"):
        pass


FULL_DISK = [
    OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)),
    OSError(errno.EDQUOT, os.strerror(errno.EDQUOT)),
    SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)"),
]


@pytest.mark.parametrize("error", FULL_DISK, ids=str)
def test_a_full_disk_leaves_the_old_content_and_names_the_path(tmp_path: Path, error: Exception) -> None:
    (tmp_path / "x").write_text("old")
    (tmp_path / "folder").mkdir()
    fill(tmp_path / "folder", a="old")
    for context, name in ((atomic_write, "x"), (atomic_folder, "folder")):
        path = tmp_path / name
        with pytest.raises(DataError, match=rf"^cannot write {path}: .+$") as caught, context(path):
            raise error
        assert caught.value.__cause__ is error
        assert "\n" not in str(caught.value)
    assert content(tmp_path) == {"x": "old", "folder/a": "old"}


def test_an_error_that_names_the_path_is_not_told_twice(tmp_path: Path) -> None:
    path = tmp_path / "folder"
    with pytest.raises(DataError, match=rf"^cannot write {path}: Error while [^:]+: .+$"), errors_name(path):  # noqa: SIM117
        with atomic_folder(path):
            raise FULL_DISK[-1]


def test_a_real_write_beyond_the_limit_leaves_the_old_content(tmp_path: Path) -> None:
    script = """
        import resource, sys
        from reallm.atomic_files import atomic_folder
        with atomic_folder(sys.argv[1]) as folder:
            resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
            (folder / "a").write_bytes(bytes(5000))
    """
    (tmp_path / "folder").mkdir()
    fill(tmp_path / "folder", a="old")
    done = run(script, tmp_path / "folder")
    assert done.stderr.strip().endswith(f"DataError: cannot write {tmp_path / 'folder'}: File too large")
    assert content(tmp_path) == {"folder/a": "old"}


# Folders


@pytest.fixture(params=["exchange", "two renames"])
def swap(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Both ways to put the new folder in place of the old one."""
    if request.param == "two renames":
        monkeypatch.setattr(files, "_exchange", lambda a, b: False)
    return request.param


def test_a_folder_is_written_and_replaced(tmp_path: Path, swap: str) -> None:
    path = tmp_path / "runs" / "last"
    with atomic_folder(path) as folder:
        fill(folder, a="1", b="1")
    assert content(path) == {"a": "1", "b": "1"}
    with atomic_folder(path) as folder:
        (folder / "deep").mkdir()
        fill(folder / "deep", c="2")
        assert content(path) == {"a": "1", "b": "1"}
    assert content(path) == {"deep/c": "2"}
    assert [p.name for p in path.parent.iterdir()] == ["last"]


def test_an_exception_leaves_the_old_folder_and_nothing_else(tmp_path: Path) -> None:
    with atomic_folder(tmp_path / "x") as folder:
        fill(folder, a="old")
    for error in (ZeroDivisionError, KeyboardInterrupt):
        with pytest.raises(error), atomic_folder(tmp_path / "x") as folder:  # noqa: PT012
            fill(folder, a="new")
            raise error
    assert content(tmp_path) == {"x/a": "old"}


def test_a_failing_rename_leaves_the_old_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with atomic_folder(tmp_path / "x") as folder:
        fill(folder, a="old")
    monkeypatch.setattr(files, "_exchange", lambda a, b: False)
    rename, calls = Path.rename, []

    def failing(self: Path, target: Path) -> Path:
        calls.append(target)
        if len(calls) == 3:  # old aside, then new in place
            raise OSError(errno.EIO, "Input/output error")
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", failing)
    with pytest.raises(DataError, match="write .*/x: Input/output error"), atomic_folder(tmp_path / "x") as folder:
        fill(folder, a="new")
    assert content(tmp_path) == {"x/a": "old"}


def test_names_to_keep_are_carried_over_unless_written_anew(tmp_path: Path, swap: str) -> None:
    path = tmp_path / "x"
    (path / "logs" / "deep").mkdir(parents=True)
    fill(path, old="gone", notes="mine", both="old")
    fill(path / "logs" / "deep", log="kept")
    (path / "link").symlink_to("nowhere")
    with atomic_folder(path, keep=lambda name: name != "old") as folder:
        fill(folder, both="new")
    assert content(path) == {"notes": "mine", "both": "new", "logs/deep/log": "kept"}
    assert (path / "link").readlink() == Path("nowhere")


def test_a_symbolic_link_to_a_folder_is_followed(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to("real")
    with atomic_folder(tmp_path / "link") as folder:
        fill(folder, a="1")
    assert (tmp_path / "link").is_symlink()
    assert content(tmp_path / "real") == {"a": "1"}


def test_the_working_folder_is_not_replaced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "inner").mkdir()
    monkeypatch.chdir(tmp_path / "inner")
    for path in (".", "..", tmp_path):
        with pytest.raises(DataError, match="it is the working folder or holds it"), atomic_folder(path):
            pass


def test_two_writers_at_once_do_not_disturb_each_other(tmp_path: Path, swap: str) -> None:
    path = tmp_path / "x"
    with atomic_folder(path) as first:
        with atomic_folder(path) as second:
            fill(first, a="first")
            fill(second, a="second")
        assert content(path) == {"a": "second"}
    assert content(path) == {"a": "first"}
    assert [p.name for p in tmp_path.iterdir()] == ["x"]


def test_recovering_does_nothing_where_nothing_was_lost(tmp_path: Path) -> None:
    recover_folder(tmp_path / "absent" / "x")
    assert not list(tmp_path.iterdir())
    with atomic_folder(tmp_path / "x") as folder:
        fill(folder, a="1")
    recover_folder(tmp_path / "x")
    assert content(tmp_path) == {"x/a": "1"}


# Killed


def run(script: str, *arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", textwrap.dedent(script), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=240, check=False)


KILL_AT_EVERY_STEP = """
    import itertools, os, signal, sys
    from pathlib import Path
    from reallm import atomic_files as files

    path, swap = Path(sys.argv[1]), sys.argv[2]
    if swap == "two renames":
        files._exchange = lambda a, b: False

    def save(n):
        with files.atomic_folder(path, keep=lambda name: name == "kept") as folder:
            for name in "ab":
                (folder / name).write_text(str(n))

    def die_at(step):
        steps = itertools.count()
        def hook(event, arguments):  # every system call that matters is announced
            if event.split(".")[0] in ("os", "open", "shutil", "fcntl", "ctypes") and event != "os.kill":
                if next(steps) == step:
                    os.kill(os.getpid(), signal.SIGKILL)
        sys.addaudithook(hook)

    save(0)
    (path / "kept").write_text("kept")
    current, absent = 0, 0
    for step in itertools.count(1):
        child = os.fork()
        if child == 0:
            die_at(step)
            save(step)
            os._exit(0)
        status = os.waitpid(child, 0)[1]
        absent += not path.exists()
        files.recover_folder(path)
        found = {(path / name).read_text() for name in "ab"}
        assert found in ({str(current)}, {str(step)}), (step, current, found)
        assert (path / "kept").read_text() == "kept"
        current = int(found.pop())
        if status == 0:
            break
    print(step, absent, sorted(os.listdir(path.parent)))
"""


@pytest.mark.parametrize("swap", ["exchange", "two renames"])
def test_killed_at_any_step_the_folder_is_the_old_or_the_new(tmp_path: Path, swap: str) -> None:
    done = run(KILL_AT_EVERY_STEP, tmp_path / "x", swap)
    assert done.returncode == 0, done.stderr
    steps, absent, left = done.stdout.split(maxsplit=2)
    assert int(steps) > 20
    assert (int(absent) > 0) == (swap == "two renames"), "only two renames leave an instant without the folder"
    assert left.strip() == "['x']", "leftovers of killed processes are removed by the next write"


SAVE_FOREVER = """
    import itertools, sys
    from pathlib import Path
    from reallm.atomic_files import atomic_folder, atomic_write

    path = Path(sys.argv[1])
    for n in itertools.count(int(sys.argv[2])):
        with atomic_folder(path / "folder") as folder:
            for name in "abc":
                (folder / name).write_text(f"{n} " * 5000)
        with atomic_write(path / "file") as file:
            file.write_text(f"{n} " * 5000)
        print(n, flush=True)
"""


def test_killed_at_a_random_moment_the_folder_is_the_old_or_the_new(tmp_path: Path) -> None:
    rng = random.Random(1)
    n = 0
    for _ in range(10):
        command = [sys.executable, "-c", textwrap.dedent(SAVE_FOREVER), str(tmp_path), str(n + 1)]
        with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
            assert process.stdout is not None
            process.stdout.readline()  # has saved once
            time.sleep(rng.random() * 0.05)
            process.send_signal(signal.SIGKILL)
        for group in ([tmp_path / "folder" / name for name in "abc"], [tmp_path / "file"]):
            texts = {path.read_text() for path in group}
            assert len(texts) == 1
            numbers = texts.pop().split()
            assert len(numbers) == 5000
            assert len(set(numbers)) == 1
            assert int(numbers[0]) > n
        n += 1000
    for context, name in ((atomic_write, "file"), (atomic_folder, "folder")):
        with context(tmp_path / name):
            pass
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "folder"]
