"""A config.yaml that is damaged or missing: restored from the copy in run.json, or refused in a sentence."""

import pytest

from mft_jax.errors import UserError
from mft_jax.runs.directory import RunDirectory
from mft_jax.runs.store import DamagedFile
from tests.runs.samples import CONFIG, files, own_task, taken


def restart(run, refusal):
    """Reading the configuration is refused; a start restores its bytes. Returns the directory and what the start said."""
    with pytest.raises(DamagedFile, match=refusal):
        RunDirectory(run.path).config()
    heard, again = [], RunDirectory(run.path)
    assert again.take(CONFIG, heard.append) == "resumed"
    return again, heard


@pytest.mark.parametrize("damage", ["emptied", "truncated", "bit", "edited", "not utf-8"])
def test_a_damaged_configuration_is_restored_from_the_manifest(tmp_path, damage):
    """An emptied config.yaml would otherwise read as a run with every setting at its default."""
    run, _ = taken(tmp_path / "run")
    run.release()
    whole = run.config_file.read_bytes()
    damaged = {
        "emptied": b"",
        "truncated": whole[: whole.index(b"sampling:")],
        "bit": whole.replace(b"seed: 5", b"seed: 4"),
        "edited": whole.replace(b"temperature: 1.0", b"temperature: 0.5"),
        "not utf-8": b"\xff" + whole,
    }[damage]
    assert damaged != whole
    run.config_file.write_bytes(damaged)
    again, heard = restart(run, r"config\.yaml is damaged or was edited .*start the run again, which restores")
    assert run.config_file.read_bytes() == whole
    assert (run.path / "damaged" / "config.yaml").read_bytes() == damaged
    assert "restored from run.json" in heard[0]
    assert again.manifest()["changes"] == []


def test_a_configuration_that_was_deleted_is_restored_from_the_manifest(tmp_path):
    run, _ = taken(tmp_path / "run")
    run.keep_questions(own_task())
    run.release()
    whole = run.config_file.read_bytes()
    run.config_file.unlink()
    again, heard = restart(run, r"config\.yaml is missing: start the run again, which restores it from run\.json")
    assert run.config_file.read_bytes() == whole
    assert heard == [f"{run.config_file} was missing: it was restored from run.json."]
    again.release()
    run.config_file.unlink()
    run.manifest_file.unlink()
    with pytest.raises(UserError, match=r"is not empty and not a run \(it holds questions\.json but no config\.yaml\)"):
        RunDirectory(run.path).take(CONFIG)


def test_a_configuration_without_a_copy_to_restore_it_from(tmp_path):
    run, _ = taken(tmp_path / "run")
    run.release()
    run.config_file.write_bytes(b"")
    run.manifest_file.write_bytes(b"")
    before = files(tmp_path)
    with pytest.raises(
        DamagedFile, match=r"config\.yaml is damaged .* and run\.json, which has a copy, is damaged .* too"
    ):
        RunDirectory(run.path).take(CONFIG)
    assert files(tmp_path) == before
