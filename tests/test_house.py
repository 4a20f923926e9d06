"""The order of the house: a module imports only from what stands below it, and only methods know who the agents are."""

import ast
import pathlib
import re

import mft_jax

PACKAGE = pathlib.Path(mft_jax.__file__).parent
# From the ground up; modules of one line may import each other.
FLOORS = [
    ("errors", "prompts", "seeds", "signals", "worker"),
    ("files", "config", "base_model"),
    ("parallel",),
    ("models",),
    ("programs",),
    ("tasks",),
    ("sampling",),
    ("debate",),
    ("finetuning",),
    ("metrics",),
    ("methods",),
    ("session",),
    ("setup",),
    ("runs",),
    ("report",),
    ("stages",),
    ("experiment",),
    ("exchange",),
    ("arguments",),
    ("cli",),
    ("__init__", "__main__"),
]
FLOOR = {room: number for number, rooms in enumerate(FLOORS) for room in rooms}
BELOW_METHODS = [room for rooms in FLOORS[2 : FLOORS.index(("methods",))] for room in rooms] + ["runs"]


def room_of(path):
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imports(path):
    """The rooms of this package that a module imports, wherever the import stands."""
    for node in ast.walk(ast.parse(path.read_text())):
        names = [node.module] if isinstance(node, ast.ImportFrom) else []
        names += [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        for name in names:
            if name and name.startswith("mft_jax."):
                yield name.split(".")[1]


def test_modules_import_only_from_below():
    modules = [path for path in PACKAGE.rglob("*.py") if room_of(path) != "base_model"]
    assert len(modules) > 80
    upward = [
        (str(path.relative_to(PACKAGE)), room)
        for path in modules
        for room in imports(path)
        if FLOOR[room] > FLOOR[room_of(path)]
    ]
    assert upward == []


def test_nothing_below_methods_knows_of_generators_and_critics():
    told = []
    for room in BELOW_METHODS:
        for path in [*PACKAGE.glob(f"{room}/**/*.py"), *PACKAGE.glob(f"{room}.py")]:
            for number, line in enumerate(path.read_text().splitlines(), start=1):
                if re.search(r"\b2 ?N\b|critics?\b|critic_|generator_\d|\bgenerators?\b(?! draws)", line):
                    told.append(f"{path.relative_to(PACKAGE)}:{number}: {line.strip()}")
    assert told == []
