import os
import stat

import pytest

from mft_jax.errors import UserError
from mft_jax.files import atomic_write, new_directory


def test_a_new_directory_appears_whole(tmp_path):
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
    with pytest.raises(UserError, match=r"out cannot be written \(.*No space left.*\): make room"):
        fill(OSError(28, "No space left on device"))
    assert not list(tmp_path.iterdir())


def test_what_a_killed_writer_left_is_cleared_away(tmp_path):
    (tmp_path / ".out.tmp").mkdir()
    (tmp_path / ".out.tmp" / "stale").write_text("half")
    (tmp_path / "out").mkdir()  # empty: a place that was made ready
    with new_directory(tmp_path / "out") as temporary:
        (temporary / "file").write_text("new")
    assert os.listdir(tmp_path) == ["out"]
    assert os.listdir(tmp_path / "out") == ["file"]


def test_what_is_there_is_never_replaced(tmp_path):
    atomic_write(tmp_path / "out" / "file", "mine")
    for path, message in ((tmp_path / "out", "is not empty"), (tmp_path / "out" / "file", "is a file")):
        with pytest.raises(UserError, match=f"{message}: give a new directory"), new_directory(path):
            pytest.fail("the block must not begin")
    with pytest.raises(UserError, match="cannot be written"), new_directory(tmp_path / "out" / "file" / "below"):
        pytest.fail("the block must not begin")
    assert (tmp_path / "out" / "file").read_text() == "mine"
    assert stat.S_ISDIR((tmp_path / "out").stat().st_mode)
