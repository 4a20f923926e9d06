"""The layers of the package: modules import only from lower layers, and only `methods` names generators and critics."""

import ast
import pathlib
import re

import mft_jax

PACKAGE = pathlib.Path(mft_jax.__file__).parent
# From the lowest layer to the highest. Modules in the same layer may import each other.
LAYERS = [
    ("conform", "errors", "prompts", "seeds", "signals", "startup", "worker"),
    ("files", "gcs", "config", "base_model"),
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
    ("tracking",),
    ("report",),
    ("stage_inputs",),
    ("diversity_stage", "stages", "training_data", "budget"),
    ("bench",),
    ("plan",),
    ("experiment", "opening"),
    ("grid", "steps", "ask"),
    ("exchange",),
    ("arguments",),
    ("cli",),
    ("__init__", "__main__"),
]
LAYER = {part: number for number, parts in enumerate(LAYERS) for part in parts}
BELOW_METHODS = [part for parts in LAYERS[2 : LAYERS.index(("methods",))] for part in parts] + ["runs"]


def part_of(path):
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imports(path):
    """The parts of this package that a module imports, at any place in its code."""
    for node in ast.walk(ast.parse(path.read_text())):
        names = [node.module] if isinstance(node, ast.ImportFrom) else []
        names += [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        for name in names:
            if name and name.startswith("mft_jax."):
                yield name.split(".")[1]


def test_modules_import_only_from_lower_layers():
    modules = [path for path in PACKAGE.rglob("*.py") if part_of(path) != "base_model"]
    assert len(modules) > 80
    upward = [
        (str(path.relative_to(PACKAGE)), part)
        for path in modules
        for part in imports(path)
        if LAYER[part] > LAYER[part_of(path)]
    ]
    assert upward == []


def test_nothing_below_methods_names_generators_and_critics():
    found = []
    for part in BELOW_METHODS:
        for path in [*PACKAGE.glob(f"{part}/**/*.py"), *PACKAGE.glob(f"{part}.py")]:
            for number, line in enumerate(path.read_text().splitlines(), start=1):
                if re.search(r"\b2 ?N\b|critics?\b|critic_|generator_\d|\bgenerators?\b(?! draws)", line):
                    found.append(f"{path.relative_to(PACKAGE)}:{number}: {line.strip()}")
    assert found == []


def test_random_streams_are_created_in_seeds_only():
    create = re.compile(r"random\.(PRNG)?[kK]ey\(|default_rng\(|RandomState\(|random\.Random\(|wrap_key_data\(")
    found = {path.name for path in PACKAGE.rglob("*.py") if create.search(path.read_text())}
    assert found == {"seeds.py"}
