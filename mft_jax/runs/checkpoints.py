"""Checkpoints of a society while it is finetuned, in Orbax's own format, readable without this project.

DIRECTORY/STEP/ is one checkpoint: an Orbax item per part of the state ("adapters", "optimizer", ...), and "metadata",
JSON. Parts are stored as nested dicts of arrays: a tuple or a named tuple of optax becomes a dict of its indices or
fields, and what holds no array is left out. STEP counts optimizer steps done; it is the cursor into the data, whose
order follows from the configuration.
"""

import contextlib
import dataclasses
import logging
import pathlib
import shutil
from collections.abc import Generator, Mapping
from typing import Any

import jax
import orbax.checkpoint as ocp
from jaxtyping import PyTree

from mft_jax.config import LoraConfig
from mft_jax.errors import UserError
from mft_jax.metrics.ledger import Cost

METADATA = "metadata"


@dataclasses.dataclass(frozen=True, kw_only=True)
class CheckpointInfo:
    """What is known of a checkpoint besides its arrays."""

    step: int  # optimizer steps done
    finished: bool  # the last of its iteration: what the next debate and `mft eval` load
    lora: LoraConfig
    cost: Cost  # of the finetuning so far, over all starts of the run


class Checkpoints:
    """The checkpoints of one iteration, the last two kept. Close it, or use it as a context manager.

    With several processes all of them make the same calls. A checkpoint that a kill cut short, while it was written
    or removed, is not seen, and is cleared away on opening, unless `read_only`: then nothing is touched, and another
    process may be writing.
    """

    def __init__(self, directory: pathlib.Path, *, read_only: bool = False, keep: int = 2):
        self.directory = pathlib.Path(directory).absolute()  # Orbax takes no relative paths
        if not read_only and jax.process_index() == 0:
            # Not by Orbax's own option: that works in a thread beside the first save, and complains at a quick exit.
            for half_written in self.directory.glob("*.orbax-checkpoint-tmp*"):
                shutil.rmtree(half_written)
        with _quiet():
            options = ocp.CheckpointManagerOptions(
                max_to_keep=keep,
                read_only=read_only,
                create=not read_only,
                enable_async_checkpointing=False,  # a step that was saved is on disk when the next one starts
            )
            self._manager = ocp.CheckpointManager(self.directory, options=options)
            if not read_only:
                for step in sorted(self._manager.all_steps())[:-keep]:  # a kill came before, or amid, its removal
                    self._manager.delete(step)

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        with _quiet():
            self._manager.close()

    def save(self, step: int, state: Mapping[str, PyTree], *, finished: bool, lora: LoraConfig, cost: Cost) -> None:
        """Writes `state`, {part: pytree of arrays}, as the checkpoint after `step` optimizer steps, whole on return.

        Raises ValueError for a step that is not after the last one: a checkpoint is never overwritten.
        """
        latest = self.latest_step
        if latest is not None and step <= latest:
            raise ValueError(f"step {step} is not after the last checkpoint, {latest}, in {self.directory}")
        settings = {"rank": lora.rank, "alpha": lora.alpha, "targets": list(lora.targets), "dtype": lora.dtype}
        metadata = {"step": step, "finished": finished, "lora": settings, "cost": cost.to_dict()}
        parts = {name: ocp.args.StandardSave(to_plain(tree)) for name, tree in state.items()}
        with _quiet():
            self._manager.save(step, args=ocp.args.Composite(**parts, **{METADATA: ocp.args.JsonSave(metadata)}))

    @property
    def latest_step(self) -> int | None:
        """The last whole checkpoint's step."""
        return self._manager.latest_step()

    def latest(self) -> CheckpointInfo | None:
        """The last whole checkpoint, to go on from; None before the first."""
        step = self.latest_step
        return None if step is None else self.info(step)

    def finished(self) -> CheckpointInfo | None:
        """The checkpoint the society of this iteration is loaded from; None until its finetuning is done."""
        info = self.latest()
        return info if info is not None and info.finished else None

    def info(self, step: int) -> CheckpointInfo:
        args = ocp.args.Composite(**{METADATA: ocp.args.JsonRestore()})
        with self._reading(step), _quiet():
            raw = self._manager.restore(step, args=args)[METADATA]
            lora = LoraConfig(**raw["lora"] | {"targets": tuple(raw["lora"]["targets"])})
            cost = Cost.from_dict(raw["cost"], f"{self.directory / str(step)}")
            return CheckpointInfo(step=raw["step"], finished=raw["finished"], lora=lora, cost=cost)

    def restore(self, step: int, abstract: Mapping[str, PyTree]) -> dict[str, PyTree]:
        """Reads the parts named in `abstract`, bit for bit, in the structure and onto the shardings of its leaves.

        `abstract` is {part: pytree of jax.ShapeDtypeStruct with sharding, or of arrays}; parts not named are not read.
        Raises UserError when the checkpoint cannot be read or holds other shapes.
        """
        plain = {name: to_plain(jax.tree.map(_abstract, tree)) for name, tree in abstract.items()}
        args = {name: ocp.args.StandardRestore(tree) for name, tree in plain.items()}
        with self._reading(step), _quiet():
            for name, tree in plain.items():
                self._check_shapes(step, name, tree)
            found = self._manager.restore(step, args=ocp.args.Composite(**args))
            return {name: from_plain(found[name], tree) for name, tree in abstract.items()}

    def _check_shapes(self, step: int, name: str, asked: PyTree) -> None:
        """Raises UserError for the first array that is stored in another shape than asked for, or on one side only."""
        path = self.directory / str(step) / name
        with ocp.StandardCheckpointer() as reader:
            found, wanted = _shapes(reader.metadata(path).item_metadata.tree), _shapes(asked)
        for key in sorted(found.keys() | wanted.keys()):
            if found.get(key) != wanted.get(key):
                raise UserError(
                    f"{path}: {key} has shape {found.get(key)}, expected {wanted.get(key)}: the checkpoint is of "
                    "another model, LoRA configuration or number of agents; use the configuration it was made with."
                )

    @contextlib.contextmanager
    def _reading(self, step: int) -> Generator[None]:
        try:
            yield
        except UserError:
            raise
        except Exception as error:  # Orbax raises many kinds, all of which mean: not to be read
            raise UserError(
                f"The checkpoint {self.directory / str(step)} cannot be read ({type(error).__name__}): delete it, and "
                "finetuning goes on from the one before."
            ) from error


def to_plain(tree: PyTree) -> dict[str, Any]:
    """The leaves of any pytree as nested dicts, named by indices, keys and fields; empty nodes vanish."""
    plain: dict[str, Any] = {}
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        *parents, name = _names(path)
        node = plain
        for parent in parents:
            node = node.setdefault(parent, {})
        node[name] = leaf
    return plain


def from_plain(plain: Mapping[str, Any], like: PyTree) -> PyTree:
    """The inverse of `to_plain`, in the structure of `like`."""

    def find(path: tuple[Any, ...], _: Any) -> Any:
        node = plain
        for name in _names(path):
            node = node[name]
        return node

    return jax.tree_util.tree_map_with_path(find, like)


def _shapes(tree: PyTree) -> dict[str, tuple[int, ...]]:
    leaves = jax.tree_util.tree_leaves_with_path(tree, is_leaf=lambda node: hasattr(node, "shape"))
    return {".".join(_names(path)): tuple(leaf.shape) for path, leaf in leaves}


def _names(path: tuple[Any, ...]) -> list[str]:
    return [jax.tree_util.keystr((key,), simple=True) for key in path] or ["value"]


def _abstract(leaf: Any) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=leaf.sharding)


@contextlib.contextmanager
def _quiet() -> Generator[None]:
    """Orbax reports every save through absl's logger; a user's terminal shows progress instead. Errors still show."""
    logger = logging.getLogger("absl")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)
