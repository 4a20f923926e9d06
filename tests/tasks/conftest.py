"""Shared by the tests of tasks."""

import io

import pytest


@pytest.fixture
def offline(monkeypatch):
    """Calls that ask the network, all of which fail as they do without one."""
    asked = []

    def refuse(url, timeout):
        asked.append(url)
        raise OSError(-2, "Name or service not known")

    monkeypatch.setattr("urllib.request.urlopen", refuse)
    return asked


@pytest.fixture
def online(monkeypatch):
    """A network that serves the files of a directory that the test fills: {url: path}."""
    files = {}
    monkeypatch.setattr("urllib.request.urlopen", lambda url, timeout: io.BytesIO(files[url].read_bytes()))
    return files
