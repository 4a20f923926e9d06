"""Reads a configuration from a YAML file. Every error in the file is raised as a UserError."""

import pathlib
from typing import Any

import yaml

from mft_jax.config.build import from_dict
from mft_jax.config.fields import ExperimentConfig
from mft_jax.errors import UserError

GRID = "grid"  # the key of the axes in the file of a grid of runs
MAX_BYTES = 100_000  # a configuration with every field has about 2,000
MAX_VALUES = 10_000  # counted with every alias expanded
_PLAIN_TAGS = {
    f"tag:yaml.org,2002:{kind}" for kind in ("null", "bool", "int", "float", "str", "timestamp", "seq", "map", "merge")
}


def load_config(path: str | pathlib.Path) -> ExperimentConfig:
    """Reads and validates a YAML file. Raises a UserError that names the file, and the wrong line or field."""
    raw = read_yaml(path)
    if isinstance(raw, dict) and GRID in raw:
        raise UserError(
            f"{path} is a grid of runs, expected the configuration of one run: only `mft run` takes a grid."
        )
    return from_dict({} if raw is None else raw, str(path))


def from_yaml(data: bytes, source: str) -> ExperimentConfig:
    """Parses the content of a YAML file. `source` names it in error messages. Raises UserError as `load_config` does."""
    raw = parse_yaml(data, source)
    return from_dict({} if raw is None else raw, source)


def read_yaml(path: str | pathlib.Path) -> Any:
    """The plain values in a YAML file; None if it is empty. Raises UserError as `load_config` does."""
    try:
        with open(path, "rb") as file:
            return parse_yaml(file.read(MAX_BYTES + 1), str(path))
    except OSError as error:
        raise UserError(
            f"Cannot read the configuration {path} ({error.strerror}): give the path of a YAML file."
        ) from error


def parse_yaml(data: bytes, source: str) -> Any:
    """The plain values in the content of a YAML file; None if it is empty. Raises UserError as `load_config` does."""
    if len(data) > MAX_BYTES:
        raise UserError(f"{source} has more than {MAX_BYTES:,} bytes: give the path of a configuration.")
    try:
        return _parse(data.decode("utf-8"))
    except UnicodeDecodeError as error:
        raise UserError(
            f"{source} is not UTF-8 text (byte {error.start} is 0x{data[error.start]:02x}): save it as UTF-8."
        ) from error
    except RecursionError:
        raise UserError(f"{source} is nested too deeply: write a mapping of fields, as in configs/.") from None
    except yaml.MarkedYAMLError as error:
        line = f"line {error.problem_mark.line + 1}: " if error.problem_mark else ""
        problem = ", ".join(part for part in (error.context, error.problem) if part)
        raise UserError(f"{source} is not valid YAML: {line}{problem}.") from error
    except yaml.YAMLError as error:
        raise UserError(f"{source} is not valid YAML: {' '.join(str(error).split())}.") from error
    except (ValueError, LookupError) as error:
        raise UserError(f"{source} holds a value that YAML cannot read ({error}): correct it, or quote it.") from error


class _Loader(yaml.SafeLoader):
    """Loads plain values only. Dates are loaded as text."""


_Loader.add_constructor("tag:yaml.org,2002:timestamp", yaml.SafeLoader.construct_yaml_str)


def _parse(text: str) -> Any:
    loader = _Loader(text)
    try:
        root = loader.get_single_node()
        if root is None:
            return None
        _count_values(root, {})
        return loader.construct_document(root)
    finally:
        loader.dispose()


def _count_values(node: yaml.Node, counts: dict[yaml.Node, int]) -> int:
    """The number of values in a node, with aliases expanded. `counts` holds the numbers of the nodes visited so far.

    Raises yaml.MarkedYAMLError if there are too many values, if a mapping contains a key twice (PyYAML silently takes
    the last one), and for a tag other than those of plain values.
    """
    if node in counts:
        return counts[node]
    counts[node] = MAX_VALUES  # for a node that contains itself: expanded, it would have no end
    if node.tag not in _PLAIN_TAGS:
        raise _error(node, f"the tag {node.tag} is not allowed")
    children = node.value if isinstance(node, yaml.SequenceNode) else []
    if isinstance(node, yaml.MappingNode):
        _refuse_duplicates(node)
        children = [part for pair in node.value for part in pair]
    counts[node] = 1 + sum(_count_values(child, counts) for child in children)
    if counts[node] > MAX_VALUES:
        raise _error(node, f"there are more than {MAX_VALUES:,} values once aliases are replaced")
    return counts[node]


def _refuse_duplicates(mapping: yaml.MappingNode) -> None:
    lines: dict[tuple[str, str], int] = {}
    for key in (key for key, _ in mapping.value if isinstance(key, yaml.ScalarNode)):
        name = (key.tag, key.value)
        if name in lines:
            raise _error(
                key, f"the key {key.value[:80]!r} was already given in line {lines[name]}; keep one of the two"
            )
        lines[name] = key.start_mark.line + 1


def _error(node: yaml.Node, problem: str) -> yaml.MarkedYAMLError:
    return yaml.MarkedYAMLError(problem=problem, problem_mark=node.start_mark)
