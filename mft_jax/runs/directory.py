"""A run directory: takes it for one process, checks changed settings, and records how the run ended.

The names of its files are in `layout`.
"""

import hashlib
import json
import pathlib
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any, Literal

from mft_jax.config import Change, Difference, ExperimentConfig, compare, from_dict, to_dict
from mft_jax.errors import UserError
from mft_jax.parallel.hosts import decided, first_only
from mft_jax.runs import layout
from mft_jax.runs.collect import publish_results, read_evaluations
from mft_jax.runs.config_file import decode_config, encode_config
from mft_jax.runs.environment import now
from mft_jax.runs.lock import LOCK_FILE, InUse
from mft_jax.runs.manifest import new_manifest, parse_manifest, plain, with_start
from mft_jax.runs.questions import keep_questions
from mft_jax.runs.results import Result, read_results, write_results
from mft_jax.runs.store import Damage, DamagedFile, Store, to_path
from mft_jax.runs.survey import find_damage

if TYPE_CHECKING:
    from mft_jax.tasks import Task

# Files that a process may leave behind if it is killed while it creates a run.
_UNFINISHED = {LOCK_FILE, layout.MANIFEST, f".{layout.MANIFEST}.tmp", f".{layout.CONFIG}.tmp"}
# Files that `mft import-adapters` writes; the second one may be left behind if it is killed.
_IMPORTED = {layout.INITIAL, f".{layout.INITIAL}.tmp"}
# Verdicts of people that the first iteration is to use.
_FEEDBACK = {layout.FEEDBACK, layout.FEEDBACK_LOCK, f".{layout.FEEDBACK}.tmp"}


class RunDirectory:
    """The directory of one run, on this machine or in a bucket ("gs://BUCKET/PATH").

    The paths can be read at any time. A process that works on the run calls `take` before it loads anything else. If
    `take` returns "new", the process loads the task and the model and then calls `create`. At the end it calls
    `finish` or `stop`, or `release` if neither applies. In a run on several hosts, all of them do; host 0 takes it.
    """

    def __init__(self, path: str | pathlib.Path, trained_in: Store | None = None):
        """`trained_in` is the store of the run that trained the agents, if this directory is only an evaluation."""
        self.path = to_path(path)
        self.store = Store(self.path)
        self._trained_in = trained_in
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
        """The ids of the questions that the run uses."""
        return self.store.path(layout.QUESTIONS)

    @property
    def metrics_file(self) -> pathlib.Path:
        return self.store.path(layout.METRICS)

    @property
    def results_file(self) -> pathlib.Path:
        return self.store.path(layout.RESULTS)

    @property
    def initial(self) -> pathlib.Path:
        """The checkpoint of the imported adapters."""
        return self.store.path(layout.INITIAL)

    def baseline_file(self, method: str) -> pathlib.Path:
        """The evaluation transcripts of a method without finetuning."""
        return self.store.path(layout.evaluation(method, 0))

    def debate_file(self, iteration: int) -> pathlib.Path:
        """The debate that generates the training data of an iteration."""
        return self.store.path(layout.debate(iteration))

    def training_set_file(self, iteration: int, name: str) -> pathlib.Path:
        """The training set of the adapter `name` in an iteration."""
        return self.store.path(layout.training_set(iteration, name))

    def checkpoint(self, iteration: int) -> pathlib.Path:
        return self.store.path(layout.checkpoint(iteration))

    def evaluation_file(self, iteration: int) -> pathlib.Path:
        """The evaluation transcripts after the finetuning of an iteration."""
        return self.store.path(layout.evaluation("", iteration))

    def evaluation(self, label: str) -> "RunDirectory":
        """The evaluation of the run's agents on another task. It is a run directory with its own lock."""
        return RunDirectory(self.path / layout.EVALUATIONS / label, trained_in=self.store)

    # State

    @property
    def exists(self) -> bool:
        """Whether a run was created here."""
        return self.store.is_file(layout.CONFIG)

    @property
    def is_finished(self) -> bool:
        return self.exists and self.store.exists(layout.MANIFEST) and self.manifest()["status"] == "finished"

    @property
    def has_imported(self) -> bool:
        """Whether adapters were imported, from which the run starts."""
        return self.store.exists(layout.INITIAL)

    @decided
    def config(self) -> ExperimentConfig:
        """The configuration of the run. Raises UserError if config.yaml is missing or damaged."""
        if not self.exists:
            if self._has_lost_config():
                raise DamagedFile(
                    f"{self.config_file} is missing: start the run again, which restores it from run.json."
                )
            raise UserError(f"{self.path} is not a run: it has no config.yaml; give the directory of a run.")
        try:
            return decode_config(self.store.read(layout.CONFIG), str(self.config_file))
        except Damage as damage:
            raise DamagedFile(
                f"{self.config_file} is damaged or was edited ({damage}): start the run again, which restores it from "
                "run.json. To change settings, give them to `mft run` as options."
            ) from damage

    @decided
    def manifest(self) -> dict[str, Any]:
        """The content of run.json. Raises UserError if it is missing or damaged."""
        try:
            return parse_manifest(self.store.read(layout.MANIFEST), str(self.manifest_file))
        except Damage as damage:
            raise DamagedFile(
                f"{self.manifest_file} is damaged ({damage}): start the run again, which sets it aside and writes a "
                "new one."
            ) from damage

    # Start and end of a run

    @decided
    def take(
        self,
        config: ExperimentConfig,
        say: Callable[[str], None] = lambda text: None,
        adapters: Sequence[str] | None = None,
    ) -> Literal["new", "resumed", "finished"]:
        """Takes the directory for this process, and returns the state of the run in it.

        "new": there is no run yet; call `create`.
        "resumed": there is work left. This start and the changed settings have been recorded. A finished run is resumed
        if it is extended, or if some of its files are damaged, which `say` reports. If `adapters` are given, missing
        files count as damage too (see `find_damage`).
        "finished": there is nothing to do, and nothing was changed.

        Raises UserError if another process has the directory, if it contains something other than a run, or if
        settings differ that may not change (the error names each of them). The directory is then unchanged.
        """
        if not self._has_lost_config():
            self._check_no_other_files()
        self.store.hold()
        try:
            self._restore_lost_config(say)
            return self._resume(config, say, adapters) if self.exists else "new"
        except BaseException:
            self.release()
            raise

    def take_for_import(self) -> None:
        """Takes the directory for this process, to import adapters for a run that has not started.

        Raises UserError if the run has started, if it has imported adapters already, and as `take` does.
        """
        self._check_no_other_files()
        self.store.hold()
        if self.exists or self.has_imported:
            self.release()
            if self.exists:
                raise UserError(f"{self.path} is a run already: import adapters into a new directory.")
            raise UserError(f"{self.initial} holds imported adapters already: delete it, or give a new directory.")

    @decided
    def create(self, config: ExperimentConfig) -> None:
        """Creates the run after `take` has returned "new". Raises UserError if it cannot be written."""
        try:
            self._record_start(new_manifest(config), [])
            self._write_config(config)
        except UserError:
            self.store.delete(layout.MANIFEST)
            self._manifest = {}
            raise

    @decided
    def keep_questions(self, task: "Task", say: Callable[[str], None] = lambda text: None) -> None:
        """Records which questions the run uses. Raises UserError if an earlier start of the run used others."""
        keep_questions(self.store, task, say)

    @decided
    def publish(
        self, config: ExperimentConfig, task: "Task", say: Callable[[str], None] = lambda text: None
    ) -> list[Result]:
        """Rebuilds results.json from the evaluations. The process must have taken the directory."""
        return publish_results(self.store, config, task, say, self._trained_in)

    @decided
    def publish_evaluations(self, say: Callable[[str], None] = lambda text: None) -> None:
        """Adds the results in evaluations/LABEL/ to results.json. Holds the directory meanwhile.

        If another process has the directory, or if results.json is missing or damaged, nothing is changed and `say`
        reports it. The run includes these results when it next writes results.json.
        """
        try:
            self.store.hold()
        except InUse:
            say(f"{self.results_file} is in use by another process: the run adds these results when it writes its own.")
            return
        try:
            labels = {name.rsplit("/", 1)[-1] for name in self.store.names(layout.EVALUATIONS)}
            own = [result for result in read_results(self.results_file) if result.task not in labels]
            write_results(self.store, own + read_evaluations(self.store, say))
        except UserError as error:
            say(f"The results of this evaluation are not in {self.results_file} yet. {error}")
        finally:
            self.release()

    @first_only
    def finish(self) -> None:
        """Marks the run finished, so that `take` returns "finished" from now on, and releases the directory."""
        results = self.store.read_if_exists(layout.RESULTS)
        checksum = None if results is None else hashlib.sha256(results).hexdigest()
        end = {"status": "finished", "finished": now(), "error": None, "results_sha256": checksum}
        self._write_manifest(self._manifest | end)
        self.release()

    @first_only
    def stop(self, status: Literal["failed", "interrupted"], error: str) -> None:
        """Records why the run stopped, and releases the directory. The same command resumes the run.

        Records nothing if the run is not created yet, or is finished. Raises nothing: if the record cannot be written
        (a full disk), the user should still see the error that stopped the run.
        """
        try:
            if self._manifest.get("status") == "running":
                self._write_manifest(self._manifest | {"status": status, "error": error})
        except UserError:
            pass  # the status "running" without a lock also means that the run was interrupted
        finally:
            self.release()

    @first_only
    def release(self) -> None:
        """Releases the directory. If no run was created, removes the lock file and the directories created for it."""
        self.store.release(discard=not self.exists)

    def _resume(
        self, config: ExperimentConfig, say: Callable[[str], None], adapters: Sequence[str] | None
    ) -> Literal["resumed", "finished"]:
        changes = self._allowed_changes(self._read_or_restore_config(say), config)
        self._manifest = self._read_or_create_manifest(config, say)
        is_longer = any(difference.change is Change.GROW for difference in changes)
        if self._manifest["status"] == "finished" and not is_longer:
            damage = find_damage(self.store, config, adapters)
            if not damage:
                return "finished"
            say(f"The finished run in {self.path} is resumed to repair it. {' '.join(damage)}")
        # Written before config.yaml: if the process is killed in between, the changes are recorded nevertheless.
        self._record_start(self._manifest | {"config": to_dict(config)}, changes)
        if changes:
            self._write_config(config)
        return "resumed"

    def _read_or_restore_config(self, say: Callable[[str], None]) -> ExperimentConfig:
        """The stored configuration. If config.yaml is damaged, it is restored from the copy in run.json."""
        try:
            return self.config()
        except DamagedFile as damage:
            config = self._config_in_manifest()
            if config is None:
                raise DamagedFile(
                    f"{self.config_file} is damaged or was edited ({damage.__cause__}), and run.json, which has a "
                    "copy, is damaged or missing too: put one of the two back from a backup, or give another --run-dir."
                ) from damage
            aside = self.store.path(self.store.copy_aside(layout.CONFIG))
            self._write_config(config)
            say(
                f"{self.config_file} is damaged or was edited ({damage.__cause__}): it was restored from run.json, and "
                f"the damaged file was copied to {aside}."
            )
            return config

    def _has_lost_config(self) -> bool:
        """Whether this is a run whose config.yaml is missing and can be restored from the copy in run.json."""
        if self.exists or not self.store.exists(layout.QUESTIONS):  # which is written after config.yaml
            return False
        return self._config_in_manifest() is not None

    def _restore_lost_config(self, say: Callable[[str], None]) -> None:
        config = self._config_in_manifest() if self._has_lost_config() else None
        if config is not None:
            self._write_config(config)
            say(f"{self.config_file} was missing: it was restored from run.json.")

    def _config_in_manifest(self) -> ExperimentConfig | None:
        """The copy of the configuration in run.json; None if there is none."""
        try:
            return from_dict(self.manifest()["config"], str(self.manifest_file))
        except (UserError, KeyError):
            return None

    def _allowed_changes(self, stored: ExperimentConfig, config: ExperimentConfig) -> list[Difference]:
        """The settings that differ from the stored ones. Raises UserError, which names those that must not change."""
        found = compare(stored, config)
        refused = [difference for difference in found if not difference.allowed]
        if refused:
            listed = "; ".join(f"{d.field} is {plain(d.stored)!r} there, {plain(d.given)!r} given" for d in refused)
            raise UserError(
                f"{self.path} holds a run of another configuration: {listed}: give another --run-dir, or the stored "
                "values."
            )
        return list(found)

    def _read_or_create_manifest(self, config: ExperimentConfig, say: Callable[[str], None]) -> dict[str, Any]:
        """The stored manifest, or a new one if it is missing or damaged. A damaged one is moved to damaged/."""
        data = self.store.read_if_exists(layout.MANIFEST)
        if data is None:
            return new_manifest(config)
        try:
            return parse_manifest(data, str(self.manifest_file))
        except Damage as damage:
            aside = self.store.path(self.store.set_aside(layout.MANIFEST))
            say(f"{self.manifest_file} is damaged ({damage}): it was moved to {aside}, and a new one is begun.")
            return new_manifest(config)

    def _record_start(self, manifest: dict[str, Any], changes: Iterable[Difference]) -> None:
        """Records a start and the settings that changed with it."""
        self._write_manifest(with_start(manifest, changes))

    def _write_manifest(self, manifest: dict[str, Any]) -> None:
        self.store.write(layout.MANIFEST, (json.dumps(manifest, indent=2) + "\n").encode())
        self._manifest = manifest

    def _write_config(self, config: ExperimentConfig) -> None:
        self.store.write(layout.CONFIG, encode_config(config))

    def _check_no_other_files(self) -> None:
        """Raises UserError if the path is a file, or a directory with files that do not belong to a run."""
        if self.exists:
            return
        others = sorted(set(self.store.occupants()) - _UNFINISHED - _IMPORTED - _FEEDBACK)
        if others:
            raise UserError(
                f"{self.path} is not empty and not a run (it holds {others[0]} but no config.yaml): give a new "
                "--run-dir."
            )
