"""The run directory: its layout, whose run it is, and the lock that keeps a second process out.

  run.lock               held while a process works in the directory
  run.json               status, seed, and what each start ran on
  config.yaml            resolved configuration; written last, so a directory without it is not yet a run
  questions.json         ids of the questions, and a checksum of their texts; written once the run is created
  initial/               adapters that were imported before the run began; without it agents begin as the base model
The rest of the layout is what the path methods below spell.
"""

import dataclasses
import fcntl
import hashlib
import json
import os
import pathlib
from collections.abc import Iterator
from typing import Any, Literal

from mft_jax.config import ExperimentConfig, load_config, to_dict, to_yaml
from mft_jax.errors import UserError
from mft_jax.files import atomic_write, make_directory
from mft_jax.runs.environment import environment, now
from mft_jax.tasks import Task

# Where things are, not what they are: the same experiment after a move.
IGNORED_FIELDS = ("run_dir", "task.data_dir", "task.cache_dir")
# What a kill during creation can leave behind.
_UNFINISHED = {"run.lock", "run.json", ".run.json.tmp", ".config.yaml.tmp"}
# What `mft import-adapters` leaves for a run to begin with, and what a kill of it does.
_IMPORTED = {"initial", ".initial.tmp"}


class RunDirectory:
    """One experiment on disk. Paths can be asked for at any time; `open_run` is for the process that does the work."""

    def __init__(self, path: str | pathlib.Path):
        if "://" in str(path):
            raise UserError(f"{path} is not a local directory: give a local path as run_dir.")
        self.path = pathlib.Path(path).expanduser()
        self._lock: int | None = None

    # Layout

    @property
    def config_file(self) -> pathlib.Path:
        return self.path / "config.yaml"

    @property
    def manifest_file(self) -> pathlib.Path:
        return self.path / "run.json"

    @property
    def questions_file(self) -> pathlib.Path:
        """Which questions the run uses."""
        return self.path / "questions.json"

    @property
    def metrics_file(self) -> pathlib.Path:
        return self.path / "metrics.jsonl"

    @property
    def results_file(self) -> pathlib.Path:
        return self.path / "results.json"

    @property
    def initial(self) -> pathlib.Path:
        """A checkpoint of imported adapters."""
        return self.path / "initial"

    def baseline_file(self, method: str) -> pathlib.Path:
        """Evaluation transcripts of an untuned method."""
        return self.path / "baselines" / method / "eval.jsonl"

    def iteration(self, iteration: int) -> pathlib.Path:
        """Everything of iteration K = 1..L."""
        return self.path / f"iteration_{iteration}"

    def debate_file(self, iteration: int) -> pathlib.Path:
        """The debate that makes the data of an iteration."""
        return self.iteration(iteration) / "debate" / "train.jsonl"

    def training_set_file(self, iteration: int, role: Literal["generator", "critic"], agent: int) -> pathlib.Path:
        return self.iteration(iteration) / "finetune" / f"{role}_{agent}.jsonl"

    def checkpoint(self, iteration: int) -> pathlib.Path:
        return self.iteration(iteration) / "checkpoint"

    def evaluation_file(self, iteration: int) -> pathlib.Path:
        """The held-out debate of the society after finetuning K."""
        return self.iteration(iteration) / "eval" / "eval.jsonl"

    # Life of a run

    def open_run(self, config: ExperimentConfig) -> Literal["created", "resumed", "finished"]:
        """Takes the directory for this process, and creates the run in it or goes on with it.

        "finished": there is nothing to do, nothing was changed, and the directory is free for others. Raises UserError
        when another process holds the directory, when it belongs to another configuration (each field that differs is
        named), and when it is something else than a run.
        """
        self._refuse_foreign()
        self.lock()
        found = None
        try:
            found = self._create_or_resume(config)
        finally:
            if found in (None, "finished"):
                self.unlock()
        return found

    def open_import(self) -> None:
        """Takes the directory for this process, to put adapters into it for a run that is yet to begin.

        Raises UserError when the run has begun, when adapters are there already, and as `open_run` does.
        """
        self._refuse_foreign()
        self.lock()
        if not self.exists and not self.initial.exists():
            return
        self.unlock()
        if self.exists:
            raise UserError(f"{self.path} is a run already: import adapters into a new directory.")
        raise UserError(f"{self.initial} holds imported adapters already: delete it, or give a new directory.")

    def _create_or_resume(self, config: ExperimentConfig) -> Literal["created", "resumed", "finished"]:
        if not self.exists:
            self._start(_new_manifest(config))
            atomic_write(self.config_file, to_yaml(config))
            return "created"
        self._refuse_other(config)
        if self.is_finished:
            return "finished"
        self._start(self.manifest() if self.manifest_file.exists() else _new_manifest(config))
        return "resumed"

    @property
    def exists(self) -> bool:
        """Whether a run was created here."""
        return self.config_file.is_file()

    @property
    def is_finished(self) -> bool:
        return self.exists and self.manifest_file.exists() and self.manifest()["status"] == "finished"

    def config(self) -> ExperimentConfig:
        """The configuration of the run. Raises UserError when there is none."""
        if not self.exists:
            raise UserError(f"{self.path} is not a run: it has no config.yaml; give the directory of a run.")
        return load_config(self.config_file)

    def manifest(self) -> dict[str, Any]:
        """run.json. Raises UserError when it is not what `open_run` wrote."""
        try:
            manifest = json.loads(self.manifest_file.read_text(encoding="utf-8"))
            manifest["status"], manifest["starts"].append
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise UserError(
                f"{self.manifest_file} cannot be read ({error}): delete it, and the run goes on without it."
            ) from error
        return manifest

    def keep_questions(self, task: Task) -> None:
        """Writes down which questions the run uses. Raises UserError where an earlier start of the run had others."""
        given = _listing(task)
        if not self.questions_file.exists():
            atomic_write(self.questions_file, json.dumps(given, indent=2) + "\n")
            return
        try:
            stored = json.loads(self.questions_file.read_text(encoding="utf-8"))
            change = _change(stored, given)
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise UserError(
                f"{self.questions_file} cannot be read ({error}): delete it, and the run goes on without it."
            ) from error
        if change:
            raise UserError(
                f"The data of the task {task.name} have changed since this run began ({self.questions_file}: {change}): "
                "give it the data it began with, or another --run-dir."
            )

    def finish(self) -> None:
        """Marks the run finished: from now on `open_run` finds nothing to do. The directory is free for others."""
        self._write_manifest(self.manifest() | {"status": "finished", "finished": now(), "error": None})
        self.unlock()

    def fail(self, error: str) -> None:
        """Notes why the run stopped, and frees the directory; the same command goes on from what is on disk."""
        self._write_manifest(self.manifest() | {"status": "failed", "error": error})
        self.unlock()

    def lock(self) -> None:
        """Takes the directory for the life of this process. Raises UserError that names the process that has it."""
        if self._lock is not None:
            return
        try:
            make_directory(self.path)
            descriptor = os.open(self.path / "run.lock", os.O_RDWR | os.O_CREAT, 0o644)
        except OSError as error:
            raise UserError(f"{self.path} cannot be written ({error.strerror}): give another --run-dir.") from error
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = os.read(descriptor, 32).decode().strip() or "unknown"
            os.close(descriptor)
            raise UserError(
                f"{self.path} is in use by the process with pid {holder}: wait for it, stop it, or give another "
                "--run-dir."
            ) from None
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, f"{os.getpid()}\n".encode(), 0)
        self._lock = descriptor

    def unlock(self) -> None:
        """Lets others in; the end of the process does the same, however it comes."""
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    def _start(self, manifest: dict[str, Any]) -> None:
        starts = [*manifest["starts"], environment()]
        self._write_manifest(manifest | {"status": "running", "error": None, "starts": starts})

    def _write_manifest(self, manifest: dict[str, Any]) -> None:
        atomic_write(self.manifest_file, json.dumps(manifest, indent=2) + "\n")

    def _refuse_foreign(self) -> None:
        if self.path.exists() and not self.path.is_dir():
            raise UserError(f"{self.path} is a file: give a directory as --run-dir.")
        if self.exists or not self.path.exists():
            return
        others = sorted(entry.name for entry in self.path.iterdir() if entry.name not in _UNFINISHED | _IMPORTED)
        if others:
            raise UserError(
                f"{self.path} is not empty and not a run (it holds {others[0]} but no config.yaml): give a new "
                "--run-dir."
            )

    def _refuse_other(self, config: ExperimentConfig) -> None:
        found = differences(self.config(), config)
        if found:
            listed = "; ".join(f"{name} is {old!r} there, {new!r} given" for name, (old, new) in found.items())
            raise UserError(
                f"{self.path} holds a run of another configuration: {listed}: give another --run-dir, or the stored "
                "values."
            )


def differences(stored: ExperimentConfig, given: ExperimentConfig) -> dict[str, tuple[Any, Any]]:
    """{dotted field: (stored value, given value)} of the fields that differ and can change results."""
    left, right = dict(_leaves(to_dict(stored))), dict(_leaves(to_dict(given)))
    names = [name for name in right if name not in IGNORED_FIELDS]
    return {name: (left[name], right[name]) for name in names if left[name] != right[name]}


def _listing(task: Task) -> dict[str, Any]:
    """The ids of a task's questions in their order, and a checksum of what the ids stand for."""
    whole = [dataclasses.astuple(question) for question in (*task.train, *task.eval)]
    return {
        "task": task.name,
        "train": [question.id for question in task.train],
        "eval": [question.id for question in task.eval],
        "sha256": hashlib.sha256(json.dumps(whole).encode()).hexdigest(),
    }


def _change(stored: dict[str, Any], given: dict[str, Any]) -> str:
    """How two listings differ; empty if they do not."""
    for split in ("train", "eval"):
        old, new = stored[split], given[split]
        if len(old) != len(new):
            return f"{len(old)} {split} questions there, {len(new)} now"
        for number, (left, right) in enumerate(zip(old, new, strict=True), start=1):
            if left != right:
                return f"{split} question {number} is {left} there, {right} now"
    return "" if stored["sha256"] == given["sha256"] else "the same ids, but other texts or answers"


def _leaves(raw: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in raw.items():
        if isinstance(value, dict):
            yield from _leaves(value, f"{prefix}{name}.")
        else:
            yield prefix + name, value


def _new_manifest(config: ExperimentConfig) -> dict[str, Any]:
    return {
        "status": "running",
        "seed": config.seed,
        "created": now(),
        "finished": None,
        "error": None,
        "starts": [],
    }
