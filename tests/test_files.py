import errno
import os
import pathlib
import stat

import pytest

from mft_jax.errors import UserError
from mft_jax.files import atomic_write, check_space, make_directory, new_directory


def test_a_new_directory_appears_only_when_complete(tmp_path):
    with new_directory(tmp_path / "deep" / "out") as temporary:
        (temporary / "sub").mkdir()
        (temporary / "sub" / "file").write_text("content")
        assert not (tmp_path / "deep" / "out").exists()
    assert (tmp_path / "deep" / "out" / "sub" / "file").read_text() == "content"
    assert os.listdir(tmp_path / "deep") == ["out"]


def test_an_error_leaves_nothing_behind(tmp_path):
    def fill(error):
        with new_directory(tmp_path / "out") as temporary:
            (temporary / "file").write_text("half")
            raise error

    with pytest.raises(KeyboardInterrupt):
        fill(KeyboardInterrupt())
    assert not list(tmp_path.iterdir())
    with pytest.raises(UserError, match=r"out cannot be written \(No space left on device\): make room"):
        fill(OSError(28, "No space left on device"))
    with pytest.raises(UserError, match=r"weights cannot be read \(Input/output error\): check that disk"):
        fill(OSError(5, "Input/output error", str(tmp_path / "weights")))
    with pytest.raises(UserError, match=r"out cannot be written \(Input/output error\): check that disk"):
        fill(OSError(5, "Input/output error", str(tmp_path / ".out.tmp" / "weights")))
    assert not list(tmp_path.iterdir())


def test_files_of_a_killed_writer_are_removed(tmp_path):
    (tmp_path / ".out.tmp").mkdir()
    (tmp_path / ".out.tmp" / "stale").write_text("half")
    (tmp_path / "out").mkdir()  # an empty directory may be replaced
    with new_directory(tmp_path / "out") as temporary:
        (temporary / "file").write_text("new")
    assert os.listdir(tmp_path) == ["out"]
    assert os.listdir(tmp_path / "out") == ["file"]


def test_existing_files_are_never_replaced(tmp_path):
    atomic_write(tmp_path / "out" / "file", "mine")
    for path, message in ((tmp_path / "out", "is not empty"), (tmp_path / "out" / "file", "is a file")):
        with pytest.raises(UserError, match=f"{message}: give a new directory"), new_directory(path):
            pytest.fail("the block must not begin")
    with pytest.raises(UserError, match="cannot be written"), new_directory(tmp_path / "out" / "file" / "below"):
        pytest.fail("the block must not begin")
    assert (tmp_path / "out" / "file").read_text() == "mine"
    assert stat.S_ISDIR((tmp_path / "out").stat().st_mode)


def test_text_is_written_as_utf_8_and_bytes_unchanged(tmp_path):
    atomic_write(tmp_path / "a" / "file", "ü\n")
    assert (tmp_path / "a" / "file").read_bytes() == b"\xc3\xbc\n"
    atomic_write(tmp_path / "a" / "file", b"\xff\r\n")
    assert (tmp_path / "a" / "file").read_bytes() == b"\xff\r\n"
    assert os.listdir(tmp_path / "a") == ["file"]


def test_looking_for_space_leaves_nothing(tmp_path):
    check_space(tmp_path, 1 << 20)
    assert os.listdir(tmp_path) == []
    with pytest.raises(OSError, match=r"No space left|too large"):
        check_space(tmp_path, 1 << 60)
    assert os.listdir(tmp_path) == []


def test_created_directories_are_returned_or_removed_after_an_error(tmp_path, monkeypatch):
    assert make_directory(tmp_path / "a" / "b") == [tmp_path / "a", tmp_path / "a" / "b"]
    assert make_directory(tmp_path / "a" / "b") == []
    real = pathlib.Path.mkdir

    def fail(path, *rest, **options):
        if path.name == "e":
            raise OSError(errno.ENOSPC, "No space left on device")
        real(path, *rest, **options)

    monkeypatch.setattr(pathlib.Path, "mkdir", fail)
    with pytest.raises(OSError, match="No space left"):
        make_directory(tmp_path / "a" / "c" / "d" / "e")
    assert os.listdir(tmp_path / "a") == ["b"]


def test_a_race_with_another_process_for_a_directory(tmp_path, monkeypatch):
    real = pathlib.Path.mkdir

    def race(path, *rest, **options):
        real(path, *rest, **options)
        real(path, *rest, **options)

    with monkeypatch.context() as patch:
        patch.setattr(pathlib.Path, "mkdir", race)
        assert make_directory(tmp_path / "a") == []
    (tmp_path / "file").write_text("")
    with pytest.raises(FileExistsError):
        make_directory(tmp_path / "file" / "below")
