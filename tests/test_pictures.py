"""The pictures of the README can be made from a run, and are small."""

import importlib.util
import pathlib
import re

import pytest

from mft_jax.errors import UserError

FOLDER = pathlib.Path(__file__).parent.parent / "docs"
NAMES = ["accuracy.svg", "report.png", "debate.png", "ask.svg"]


@pytest.fixture(scope="module")
def pictures():
    """The script."""
    spec = importlib.util.spec_from_file_location("pictures", FOLDER / "pictures.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.browser
def test_pictures_of_a_run(pictures, finished, answering, chromium):
    directory, results, _ = finished
    made = pictures.make_pictures(str(directory.path), answering, chromium)
    assert list(made) == NAMES
    assert all(made[name].startswith(b"\x89PNG") for name in NAMES if name.endswith(".png"))
    plot, ask = made["accuracy.svg"].decode(), made["ask.svg"].decode()
    assert all(f">{result.method}<" in plot for result in results)
    said = re.sub(r"<[^>]*>", "", ask).replace("&#160;", " ")
    assert pictures.QUESTION in said
    assert all(text in said for text in ("agent 2 (generator_1)", "round 2", "vote after round 2:", "new tokens"))
    assert "url(http" not in ask  # it loads nothing
    assert "@font-face" not in ask


def test_the_pictures_of_the_readme_are_small(pictures):
    sizes = {path.name: path.stat().st_size for path in (FOLDER / "pictures").iterdir()}
    assert sorted(sizes) == sorted(NAMES)
    assert max(sizes.values()) < pictures.MAX_BYTES


def test_a_directory_without_a_run_is_one_sentence(pictures, tmp_path, monkeypatch):
    with pytest.raises(UserError, match="is not a run"):
        pictures.make_pictures(str(tmp_path))
    monkeypatch.setattr("sys.argv", ["pictures.py", str(tmp_path), str(tmp_path / "out")])
    with pytest.raises(SystemExit, match=r"^pictures: .* is not a run"):
        pictures.main()
    assert not (tmp_path / "out").exists()
