"""The life of a run: whose directory it is, what its configuration may become, how it ended. `layout` says where things are."""

import json
import os
import pathlib
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any, Literal

from mft_jax.config import Change, Difference, ExperimentConfig, compare, load_config, to_yaml
from mft_jax.errors import UserError
from mft_jax.files import file_error
from mft_jax.runs import layout
from mft_jax.runs.environment import now
from mft_jax.runs.lock import LOCK_FILE, InUse
from mft_jax.runs.manifest import new_manifest, parse_manifest, plain, with_start
from mft_jax.runs.questions import keep_questions
from mft_jax.runs.results import Result, publish_results, read_evaluations, read_results, write_results
from mft_jax.runs.store import Damage, DamagedFile, Store
from mft_jax.runs.survey import find_damage

if TYPE_CHECKING:
    from mft_jax.tasks import Task

# What a kill during creation can leave behind.
_UNFINISHED = {LOCK_FILE, layout.MANIFEST, f".{layout.MANIFEST}.tmp", f".{layout.CONFIG}.tmp"}
# What `mft import-adapters` leaves for a run to begin with, and what a kill of it does.
_IMPORTED = {layout.INITIAL, f".{layout.INITIAL}.tmp"}


class RunDirectory:
    """One experiment on disk. Paths can be asked for at any time; the process that does the work takes the directory.

    `take` before anything else is loaded; `create` when it says "new" and everything that the configuration asks for is
    there; `finish` or `stop` at the end, or `release` where neither applies.
    """

    def __init__(self, path: str | pathlib.Path):
        if "://" in str(path):
            raise UserError(f"{path} is not a local directory: give a local path as run_dir.")
        self.path = pathlib.Path(path).expanduser()
        self.store = Store(self.path)
        self._manifest: dict[str, Any] = {}

    # Paths

    @property
    def config_file(self) -> pathlib.Path:
        return self.store.path(layout.CONFIG)

    @property
    def manifest_file(self) -> pathlib.Path:
        return self.store.path(layout.MANIFEST)

    @property
    def questions_file(self) -> pathlib.Path:
        """Which questions the run uses."""
        return self.store.path(layout.QUESTIONS)

    @property
    def metrics_file(self) -> pathlib.Path:
        return self.store.path(layout.METRICS)

    @property
    def results_file(self) -> pathlib.Path:
        return self.store.path(layout.RESULTS)

    @property
    def initial(self) -> pathlib.Path:
        """A checkpoint of imported adapters."""
        return self.store.path(layout.INITIAL)

    def baseline_file(self, method: str) -> pathlib.Path:
        """Evaluation transcripts of a method without finetuning."""
        return self.store.path(layout.evaluation(method, 0))

    def debate_file(self, iteration: int) -> pathlib.Path:
        """The debate that makes the data of an iteration."""
        return self.store.path(layout.debate(iteration))

    def training_set_file(self, iteration: int, name: str) -> pathlib.Path:
        """What the adapter `name` learns from in an iteration."""
        return self.store.path(layout.training_set(iteration, name))

    def checkpoint(self, iteration: int) -> pathlib.Path:
        return self.store.path(layout.checkpoint(iteration))

    def evaluation_file(self, iteration: int) -> pathlib.Path:
        """The held-out debate of the society after finetuning K."""
        return self.store.path(layout.evaluation("", iteration))

    def evaluation(self, label: str) -> "RunDirectory":
        """The evaluation of the run's agents on another task: a run directory of its own, with a lock of its own."""
        return RunDirectory(self.path / layout.EVALUATIONS / label)

    # What is there

    @property
    def exists(self) -> bool:
        """Whether a run was created here."""
        return os.path.isfile(self.config_file)

    @property
    def is_finished(self) -> bool:
        return self.exists and self.store.exists(layout.MANIFEST) and self.manifest()["status"] == "finished"

    @property
    def has_imported(self) -> bool:
        """Whether adapters were imported for the run to begin with."""
        return self.store.exists(layout.INITIAL)

    def config(self) -> ExperimentConfig:
        """The configuration of the run. Raises UserError when there is none, and when the file is not one."""
        if not self.exists:
            raise UserError(f"{self.path} is not a run: it has no config.yaml; give the directory of a run.")
        return load_config(self.config_file)

    def manifest(self) -> dict[str, Any]:
        """run.json. Raises UserError when it is missing or damaged."""
        try:
            return parse_manifest(self.store.read(layout.MANIFEST), str(self.manifest_file))
        except Damage as damage:
            raise DamagedFile(
                f"{self.manifest_file} is damaged ({damage}): start the run again, which sets it aside and writes a new one."
            ) from damage

    # Life of a run

    def take(
        self,
        config: ExperimentConfig,
        say: Callable[[str], None] = lambda text: None,
        adapters: Sequence[str] | None = None,
    ) -> Literal["new", "resumed", "finished"]:
        """Takes the directory for this process. Before anything else: it decides which of two processes may work here.

        "new": there is no run yet, and `create` makes it. "resumed": the start, and the settings that changed, are
        recorded; so is a finished run that is given more, or of which something is damaged, which `say` is told (missing,
        too, where `adapters` are given; see `find_damage`).
        "finished": there is nothing left to do, and nothing was changed. Raises UserError when another process has the
        directory, when it is something else than a run, and when settings differ that may not change, each of which is
        named; the directory is then as it was.
        """
        self._refuse_foreign()
        self.store.hold()
        try:
            return self._resume(config, say, adapters) if self.exists else "new"
        except BaseException:
            self.release()
            raise

    def take_for_import(self) -> None:
        """Takes the directory for this process, to put adapters into it for a run that is yet to begin.

        Raises UserError when the run has begun, when adapters are there already, and as `take` does.
        """
        self._refuse_foreign()
        self.store.hold()
        if self.exists or self.has_imported:
            self.release()
            if self.exists:
                raise UserError(f"{self.path} is a run already: import adapters into a new directory.")
            raise UserError(f"{self.initial} holds imported adapters already: delete it, or give a new directory.")

    def create(self, config: ExperimentConfig) -> None:
        """Makes the run in a directory that was taken and is "new". Raises UserError when it cannot be written."""
        try:
            self._start(new_manifest(config), [])
            self._write_config(config)
        except UserError:
            self.store.delete(layout.MANIFEST)
            self._manifest = {}
            raise

    def keep_questions(self, task: "Task") -> None:
        """Writes down which questions the run uses. Raises UserError where an earlier start of the run had others."""
        keep_questions(self.store, task)

    def publish(
        self, config: ExperimentConfig, task: "Task", say: Callable[[str], None] = lambda text: None
    ) -> list[Result]:
        """Rebuilds results.json from the evaluations. Only for the process that has taken the directory."""
        return publish_results(self.store, config, task, say)

    def publish_evaluations(self, say: Callable[[str], None] = lambda text: None) -> None:
        """Puts the results in evaluations/LABEL/ into results.json, and takes the directory for as long.

        While another process has the directory, and where results.json is missing or damaged, nothing is changed, and
        `say` is told: whoever works on the run does the same when it writes results.json.
        """
        try:
            self.store.hold()
        except InUse:
            say(f"{self.results_file} is updated when the run at work there next writes its results.")
            return
        try:
            labels = {name.rsplit("/", 1)[-1] for name in self.store.names(layout.EVALUATIONS)}
            own = [result for result in read_results(self.results_file) if result.task not in labels]
            write_results(self.store, own + read_evaluations(self.store, say))
        except UserError as error:
            say(f"The results of this evaluation are not in {self.results_file} yet. {error}")
        finally:
            self.release()

    def finish(self) -> None:
        """Marks the run finished: from now on `take` finds nothing to do. The directory is free for others."""
        self._write_manifest(self._manifest | {"status": "finished", "finished": now(), "error": None})
        self.release()

    def stop(self, status: Literal["failed", "interrupted"], error: str) -> None:
        """Notes why the run stopped, and frees the directory; the same command resumes from what is on disk.

        Of a run that is not created yet, or finished, nothing is noted. Raises nothing: where the note cannot be written
        (a full disk), the error that stopped the run is the one to show.
        """
        try:
            if self._manifest.get("status") == "running":
                self._write_manifest(self._manifest | {"status": status, "error": error})
        except UserError:
            pass  # a run that says "running" while nobody holds it was interrupted, too
        finally:
            self.release()

    def release(self) -> None:
        """Lets others in. Where no run was created, nothing is left: neither the lock nor directories made for it."""
        self.store.release(discard=not self.exists)

    def _resume(
        self, config: ExperimentConfig, say: Callable[[str], None], adapters: Sequence[str] | None
    ) -> Literal["resumed", "finished"]:
        changes = self._allowed_changes(config)
        self._manifest = self._read_or_begin_manifest(config, say)
        is_longer = any(difference.change is Change.GROW for difference in changes)
        if self._manifest["status"] == "finished" and not is_longer:
            damage = find_damage(self.store, config, adapters)
            if not damage:
                return "finished"
            say(f"The finished run in {self.path} is resumed to repair it. {' '.join(damage)}")
        self._start(self._manifest, changes)  # before config.yaml: a kill between the two loses no record
        if changes:
            self._write_config(config)
        return "resumed"

    def _allowed_changes(self, config: ExperimentConfig) -> list[Difference]:
        """The settings that are another than before. Raises UserError that names those which may not be."""
        found = compare(self.config(), config)
        refused = [difference for difference in found if not difference.allowed]
        if refused:
            listed = "; ".join(f"{d.field} is {plain(d.stored)!r} there, {plain(d.given)!r} given" for d in refused)
            raise UserError(
                f"{self.path} holds a run of another configuration: {listed}: give another --run-dir, or the stored "
                "values."
            )
        return list(found)

    def _read_or_begin_manifest(self, config: ExperimentConfig, say: Callable[[str], None]) -> dict[str, Any]:
        data = self.store.read_if_exists(layout.MANIFEST)
        if data is None:
            return new_manifest(config)
        try:
            return parse_manifest(data, str(self.manifest_file))
        except Damage as damage:
            aside = self.store.path(self.store.set_aside(layout.MANIFEST))
            say(f"{self.manifest_file} is damaged ({damage}): it was moved to {aside}, and a new one is begun.")
            return new_manifest(config)

    def _start(self, manifest: dict[str, Any], changes: Iterable[Difference]) -> None:
        """Records a start and the settings that changed before it."""
        self._write_manifest(with_start(manifest, changes))

    def _write_manifest(self, manifest: dict[str, Any]) -> None:
        self.store.write(layout.MANIFEST, (json.dumps(manifest, indent=2) + "\n").encode())
        self._manifest = manifest

    def _write_config(self, config: ExperimentConfig) -> None:
        self.store.write(layout.CONFIG, to_yaml(config).encode())

    def _refuse_foreign(self) -> None:
        """Raises UserError for a file, and for a directory with something else in it than a run or its beginnings."""
        if self.exists or not os.path.exists(self.path):
            return
        try:
            others = sorted(set(os.listdir(self.path)) - _UNFINISHED - _IMPORTED)
        except NotADirectoryError:
            raise UserError(f"{self.path} is a file: give a directory as --run-dir.") from None
        except OSError as error:
            raise file_error("read", self.path, error) from error
        if others:
            raise UserError(
                f"{self.path} is not empty and not a run (it holds {others[0]} but no config.yaml): give a new --run-dir."
            )
