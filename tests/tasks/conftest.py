"""Shared by the tests of tasks."""

import gc
import io
import time

import pytest

from mft_jax.tasks import answers


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


@pytest.fixture
def costs_less():
    """costs_less(seconds, work): whether `work` takes this thread less than `seconds` of processor time.

    The better of three attempts counts, none of which knows an answer from before: a pause of the machine is no cost of
    the work, nor is a collection of the garbage that other tests have left.
    """

    def measure(work):
        for cache in (answers._canonical, answers.number, answers._same_formula):
            cache.cache_clear()
        start = time.thread_time()
        work()
        return time.thread_time() - start

    gc.freeze()
    yield lambda seconds, work: any(measure(work) < seconds for _ in range(3))
    gc.unfreeze()
