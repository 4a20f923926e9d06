"""Checkpoints of a society while it is finetuned, in Orbax's own format, readable without this project.

DIRECTORY/STEP/ is one checkpoint: an Orbax item per part of the state ("adapters", "optimizer", ...), and "metadata",
JSON. Parts are stored as nested dicts of arrays: a tuple or a named tuple of optax becomes a dict of its indices or
fields, and what holds no array is left out. STEP counts optimizer steps done; it is the cursor into the data, whose
order follows from the configuration. The metadata contain a checksum of each part, which every reading verifies.
"""

import contextlib
import shutil
from collections.abc import Callable, Generator, Mapping

import jax
import orbax.checkpoint as ocp
from jaxtyping import PyTree

from mft_jax.config import LoraConfig
from mft_jax.errors import UserError
from mft_jax.files import check_space, file_error, make_directory
from mft_jax.metrics.ledger import Cost
from mft_jax.runs.arrays import (
    check_arrays,
    describe,
    first_line,
    from_plain,
    is_out_of_memory,
    quiet_orbax,
    read_arrays,
    refused_by_system,
    sha256_of,
    to_plain,
)
from mft_jax.runs.checkpoint_info import (
    METADATA,
    CheckpointInfo,
    Part,
    damaged_checkpoint,
    latest_info,
    make_metadata,
    read_metadata,
    saved_steps,
)
from mft_jax.runs.store import Damage, Store
from mft_jax.signals import deferred

# Otherwise, where a directory cannot be made, Orbax's threads wait five minutes for it, and the process for them.
_SYNCHRONOUS = ocp.CompositeOptions(async_options=ocp.AsyncOptions(create_directories_asynchronously=False))

_OVERHEAD = 1 << 20  # bytes of a checkpoint besides its arrays, at most


class Checkpoints:
    """The checkpoints in the directory NAME of a store ("" is the store itself), the last `keep` of them.

    Without `read_only`, opening clears away what a kill left half written or half deleted. With it nothing is ever
    changed, and another process may be writing.
    """

    def __init__(self, store: Store, name: str, *, read_only: bool = False, keep: int = 2):
        self.store, self.name, self.read_only, self.keep = store, name, read_only, keep
        self.directory = store.path(name).absolute()  # Orbax takes no relative paths
        if not read_only:
            self._remove_half_written()
            self._remove_old()

    @property
    def latest_step(self) -> int | None:
        """The newest checkpoint's step."""
        return max(saved_steps(self.store, self.name), default=None)

    def latest(self) -> CheckpointInfo | None:
        """What is known of the newest checkpoint; None before the first. Raises DamagedFile."""
        return latest_info(self.store, self.name)

    def finished(self) -> CheckpointInfo | None:
        """The checkpoint the society of this iteration is loaded from; None until its finetuning is done."""
        info = self.latest()
        return info if info is not None and info.finished else None

    def info(self, step: int) -> CheckpointInfo:
        """What is known of one checkpoint. Raises DamagedFile, and UserError when it cannot be read."""
        with self._telling_of_damage(step):
            return read_metadata(self.store, self.name, step)[0]

    def save(
        self,
        step: int,
        state: Mapping[str, PyTree],
        *,
        finished: bool,
        lora: LoraConfig,
        cost: Cost,
        names: tuple[str, ...],
        plan: str = "",
        total: int = 0,
    ) -> None:
        """Writes `state`, {part: pytree of arrays}, as the checkpoint after `step` optimizer steps, whole on return.

        The other arguments are the fields of `CheckpointInfo`. A signal that arrives meanwhile takes effect afterwards.
        Raises UserError when the checkpoint cannot be written, and leaves nothing of it then; ValueError for a step
        that is not after the last one: a checkpoint is never overwritten.
        """
        latest = self.latest_step
        if latest is not None and step <= latest:
            raise ValueError(f"step {step} is not after the last checkpoint, {latest}, in {self.directory}")
        info = CheckpointInfo(step=step, finished=finished, lora=lora, cost=cost, names=names, plan=plan, total=total)
        parts = {name: to_plain(tree) for name, tree in state.items()}
        metadata = make_metadata(info, {name: Part(sha256_of(tree), describe(tree)) for name, tree in parts.items()})
        items = {name: ocp.args.StandardSave(tree) for name, tree in parts.items()}
        with deferred(), self._writing(step):
            make_directory(self.directory)
            # Where Orbax itself meets a full disk, its threads print a traceback for each array that fails.
            check_space(self.directory, sum(leaf.nbytes for leaf in jax.tree.leaves(parts)) + _OVERHEAD)
            with ocp.Checkpointer(ocp.CompositeCheckpointHandler(composite_options=_SYNCHRONOUS)) as writer:
                composite = ocp.args.Composite(**items, **{METADATA: ocp.args.JsonSave(metadata)})
                writer.save(self.directory / str(step), args=composite)
            self._remove_old()

    def restore(self, step: int, abstract: Mapping[str, PyTree]) -> dict[str, PyTree]:
        """Reads the parts named in `abstract`, bit for bit, in the structure and onto the shardings of its leaves.

        `abstract` is {part: pytree of jax.ShapeDtypeStruct with sharding, or of arrays}; parts not named are not read.
        Raises DamagedFile, and UserError when the checkpoint cannot be read or has arrays of other shapes or types.
        """
        with self._telling_of_damage(step):
            return self._read(step, abstract)[1]

    def verify(self, step: int, part: str) -> None:
        """Raises DamagedFile unless a part of a checkpoint is what was written, UserError when it cannot be read."""
        with self._telling_of_damage(step):
            self._read_part(step, part, read_metadata(self.store, self.name, step)[1][part])

    def newest_whole(
        self, abstract: Mapping[str, PyTree], say: Callable[[str], None]
    ) -> tuple[CheckpointInfo, dict[str, PyTree]] | None:
        """The newest checkpoint whose parts named in `abstract` are what was written; None where there is none.

        A damaged one is set aside, which `say` is told, and the one before is taken. A checkpoint that cannot be read
        for another reason (memory, permissions, other shapes than asked for) is left where it is: UserError; with
        `read_only` a damaged one is, too: DamagedFile.
        """
        steps = saved_steps(self.store, self.name)
        while steps:
            step = steps.pop()
            try:
                return self._read(step, abstract)
            except Damage as damage:
                if self.read_only:
                    raise damaged_checkpoint(self.store, self.name, step, damage) from damage
                aside = self.store.path(self.store.set_aside(self._step_name(step)))
                resume = f"resumes from step {steps[-1]}" if steps else "starts anew"
                say(f"The checkpoint {self.directory / str(step)} is damaged ({damage}): it was moved to {aside}, and "
                    f"finetuning {resume}.")  # fmt: skip
        return None

    def _read(self, step: int, abstract: Mapping[str, PyTree]) -> tuple[CheckpointInfo, dict[str, PyTree]]:
        """Raises Damage, and UserError as `restore` does. Arrays are verified on the host before they are placed."""
        info, parts = read_metadata(self.store, self.name, step)
        placed = {}
        for name, tree in abstract.items():
            path = self.directory / str(step) / name
            if name not in parts:
                raise UserError(f"{path.parent} has no part {name!r}, it has {', '.join(parts)}: give its own run.")
            check_arrays(path, parts[name].arrays, describe(to_plain(tree)))
            placed[name] = self._place(from_plain(self._read_part(step, name, parts[name]), tree), tree)
        return info, placed

    def _read_part(self, step: int, name: str, part: Part) -> dict[str, PyTree]:
        """The arrays of one part on the host. Raises Damage unless they are what was written."""
        arrays = read_arrays(self.directory / str(step) / name, tuple(part.arrays))
        if sha256_of(arrays) != part.sha256:
            raise Damage(f"the checksum of the {name} is wrong")
        return arrays

    def _place(self, tree: PyTree, like: PyTree) -> PyTree:
        """Host arrays onto the shardings of `like`."""
        try:
            put = lambda array, leaf: jax.device_put(array, getattr(leaf, "sharding", None))
            return jax.block_until_ready(jax.tree.map(put, tree, like))
        except (MemoryError, jax.errors.JaxRuntimeError) as error:
            if not is_out_of_memory(error):
                raise
            raise UserError(
                f"There is not enough memory on the devices for the checkpoint in {self.directory} "
                f"({first_line(error)}): use more or larger devices."
            ) from error

    @contextlib.contextmanager
    def _telling_of_damage(self, step: int) -> Generator[None]:
        try:
            yield
        except Damage as damage:
            raise damaged_checkpoint(self.store, self.name, step, damage) from damage

    @contextlib.contextmanager
    def _writing(self, step: int) -> Generator[None]:
        """Turns what the system refuses into a UserError, after which nothing half written is left."""
        try:
            with quiet_orbax():
                yield
        except Exception as error:  # Orbax raises many kinds
            self._remove_half_written()
            cause = refused_by_system(error)
            if cause is None:
                raise
            raise file_error("written", self.directory / str(step), cause) from error

    def _remove_half_written(self) -> None:
        for entry in self.directory.glob("*.orbax-checkpoint-tmp*"):
            # A thread of Orbax may still be writing there after an error: what then stays goes at the next opening.
            shutil.rmtree(entry, ignore_errors=True)

    def _remove_old(self) -> None:
        for step in saved_steps(self.store, self.name)[: -self.keep]:
            self.store.delete(self._step_name(step))

    def _step_name(self, step: int) -> str:
        return f"{self.name}/{step}".removeprefix("/")
