"""Checkpoints of a society during finetuning, in the format of Orbax, which can be read without this package.

DIRECTORY/STEP/ is one checkpoint. It has one Orbax item for each part of the state ("adapters", "optimizer", ...), and
the JSON item "metadata". Parts are stored as nested dicts of arrays: a tuple or a named tuple of optax becomes a dict
of its indices or fields, and nodes without arrays are left out. STEP is the number of optimizer steps done. It is also
the position in the training data, because the configuration determines their order. The metadata contain a checksum of
each part, which is verified whenever the part is read.
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
from mft_jax.parallel.hosts import everywhere, first_only
from mft_jax.parallel.placement import to_devices
from mft_jax.runs.arrays import (
    check_arrays,
    describe,
    first_line,
    from_plain,
    is_out_of_memory,
    quiet_orbax,
    read_arrays,
    refused_by_bucket,
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

# With asynchronous creation, Orbax's threads wait five minutes for a directory that cannot be created, and the process
# waits for these threads.
_SYNCHRONOUS = ocp.CompositeOptions(async_options=ocp.AsyncOptions(create_directories_asynchronously=False))

_OVERHEAD = 1 << 20  # bytes; a checkpoint is at most this much larger than its arrays


class Checkpoints:
    """The checkpoints in the directory `name` of a store ("" is the root of the store). Only the last `keep` are kept.

    The constructor removes half-written and half-deleted checkpoints, which a killed process may have left. With
    `read_only` nothing is ever changed, and another process may be writing.
    """

    def __init__(self, store: Store, name: str, *, read_only: bool = False, keep: int = 2):
        self.store, self.name, self.read_only, self.keep = store, name, read_only, keep
        path = store.path(name)
        self.directory = path.absolute() if store.is_local else path  # Orbax requires an absolute path
        if not read_only:
            self._remove_half_written()
            self._remove_old()

    @property
    def latest_step(self) -> int | None:
        """The step of the newest checkpoint; None if there is none."""
        return max(saved_steps(self.store, self.name), default=None)

    def latest(self) -> CheckpointInfo | None:
        """The metadata of the newest checkpoint; None if there is none. Raises DamagedFile."""
        return latest_info(self.store, self.name)

    def finished(self) -> CheckpointInfo | None:
        """The metadata of the checkpoint with the finetuned adapters; None until finetuning is finished."""
        info = self.latest()
        return info if info is not None and info.finished else None

    def info(self, step: int) -> CheckpointInfo:
        """The metadata of one checkpoint. Raises DamagedFile, and UserError if it cannot be read."""
        with self._damage_as_user_error(step):
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
        """Writes `state`, {part: pytree of arrays}, as the checkpoint after `step` optimizer steps.

        The checkpoint is complete on return. The other arguments are the fields of `CheckpointInfo`. A signal that
        arrives during the write takes effect after it. Raises UserError if the checkpoint cannot be written; nothing
        of it is left then. Raises ValueError if `step` is not after the last checkpoint: none is ever overwritten.
        """
        latest = self.latest_step
        if latest is not None and step <= latest:
            raise ValueError(f"step {step} is not after the last checkpoint, {latest}, in {self.directory}")
        info = CheckpointInfo(step=step, finished=finished, lora=lora, cost=cost, names=names, plan=plan, total=total)
        parts = {name: to_plain(tree) for name, tree in state.items()}
        metadata = make_metadata(info, {name: Part(sha256_of(tree), describe(tree)) for name, tree in parts.items()})
        items = {name: ocp.args.StandardSave(tree) for name, tree in parts.items()}
        with deferred(), self._clean_up_after_error(step):
            self._make_room(sum(leaf.nbytes for leaf in jax.tree.leaves(parts)) + _OVERHEAD)
            with ocp.Checkpointer(ocp.CompositeCheckpointHandler(composite_options=_SYNCHRONOUS)) as writer:
                composite = ocp.args.Composite(**items, **{METADATA: ocp.args.JsonSave(metadata)})
                writer.save(self.directory / str(step), args=composite)
            self._remove_old()

    def restore(self, step: int, abstract: Mapping[str, PyTree]) -> dict[str, PyTree]:
        """Reads the parts named in `abstract`, bit for bit, with the structure and the shardings of its trees.

        `abstract` is {part: pytree of jax.ShapeDtypeStruct with sharding, or of arrays}. Other parts are not read.
        Raises DamagedFile, and UserError if the checkpoint cannot be read or has arrays of other shapes or types.
        """
        with self._damage_as_user_error(step):
            return self._read(step, abstract)[1]

    def verify(self, step: int, part: str) -> None:
        """Raises DamagedFile if a part does not match its checksum, and UserError if it cannot be read."""
        with self._damage_as_user_error(step):
            self._read_part(step, part, read_metadata(self.store, self.name, step)[1][part])

    def newest_whole(
        self, abstract: Mapping[str, PyTree], say: Callable[[str], None]
    ) -> tuple[CheckpointInfo, dict[str, PyTree]] | None:
        """The newest checkpoint whose parts named in `abstract` are intact: (metadata, parts); None if there is none.

        Damaged checkpoints are moved to damaged/, and `say` reports each; with `read_only`, the first one raises
        DamagedFile instead. A checkpoint that cannot be read for another reason (memory, permissions, other shapes
        than in `abstract`) raises UserError and stays in place.
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
        """Reads the metadata and the parts named in `abstract`. Raises Damage, and UserError as `restore` does.

        Arrays are verified on the host before they are copied to devices.
        """
        info, parts = read_metadata(self.store, self.name, step)
        placed = {}
        for name, tree in abstract.items():
            path = self.directory / str(step) / name
            if name not in parts:
                raise UserError(f"{path.parent} has no part {name!r}, it has {', '.join(parts)}: give another run.")
            check_arrays(path, parts[name].arrays, describe(to_plain(tree)))
            placed[name] = self._put_on_devices(from_plain(self._read_part(step, name, parts[name]), tree), tree)
        return info, placed

    def _read_part(self, step: int, name: str, part: Part) -> dict[str, PyTree]:
        """The arrays of one part, on each host. Raises Damage if they do not match their checksum on one of them."""

        def read() -> dict[str, PyTree]:
            arrays = read_arrays(self.directory / str(step) / name, tuple(part.arrays))
            if sha256_of(arrays) != part.sha256:
                raise Damage(f"the checksum of the {name} is wrong")
            return arrays

        return everywhere(read)

    def _put_on_devices(self, tree: PyTree, like: PyTree) -> PyTree:
        """Copies host arrays to devices, with the shardings of `like`."""
        try:
            put = lambda array, leaf: to_devices(array, getattr(leaf, "sharding", None))
            return jax.block_until_ready(jax.tree.map(put, tree, like))
        except (MemoryError, jax.errors.JaxRuntimeError) as error:
            if not is_out_of_memory(error):
                raise
            raise UserError(
                f"There is not enough memory on the devices for the checkpoint in {self.directory} "
                f"({first_line(error)}): use more or larger devices."
            ) from error

    @contextlib.contextmanager
    def _damage_as_user_error(self, step: int) -> Generator[None]:
        """Raises DamagedFile instead of Damage."""
        try:
            yield
        except Damage as damage:
            raise damaged_checkpoint(self.store, self.name, step, damage) from damage

    @contextlib.contextmanager
    def _clean_up_after_error(self, step: int) -> Generator[None]:
        """After an error, removes the half-written checkpoint. Raises UserError for errors of the operating system."""
        try:
            with quiet_orbax():
                yield
        except Exception as error:  # Orbax raises many kinds
            with contextlib.suppress(UserError):  # of a bucket; the next constructor removes what is left
                self._remove_half_written()
            refusal = refused_by_bucket("written", self.directory / str(step), error)
            if refusal is not None:
                raise refusal from error
            cause = refused_by_system(error)
            if cause is None:
                raise
            raise file_error("written", self.directory / str(step), cause) from error

    @first_only
    def _make_room(self, size: int) -> None:
        """Raises OSError if there is no room: Orbax's threads would print a traceback for each array."""
        if not self.store.is_local:
            return
        make_directory(self.directory)
        check_space(self.directory, size)

    @first_only
    def _remove_half_written(self) -> None:
        if not self.store.is_local:
            whole = {self._step_name(step) for step in saved_steps(self.store, self.name)}
            for entry in self.store.names(self.name):
                if entry not in whole:
                    self.store.delete(entry)
            return
        for entry in self.directory.glob("*.orbax-checkpoint-tmp*"):
            # After an error, a thread of Orbax may still be writing there. The next constructor removes what is left.
            shutil.rmtree(entry, ignore_errors=True)

    def _remove_old(self) -> None:
        for step in saved_steps(self.store, self.name)[: -self.keep]:
            self.store.delete(self._step_name(step))

    def _step_name(self, step: int) -> str:
        return f"{self.name}/{step}".removeprefix("/")
