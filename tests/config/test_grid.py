"""The cells of a grid, and the grids that are refused."""

import pytest

from mft_jax.config import ExperimentConfig, load_config, load_grid
from mft_jax.errors import UserError

TEXT = """
run_dir: runs/g
sampling: {max_new_tokens: 64, temperature: 0.5}
grid:
  methods: [debate, multiagent_ft]
  models: {small: , wide: {debate: {agents: 6}, mesh: {agent: 2}}}
  tasks: {arithmetic: , sums: {task: {name: addition}, sampling: {max_new_tokens: 32}}}
  overrides:
    plain:
    hot: {methods: [multiagent_ft], sampling: {temperature: 2.0}}
  seeds: [0, 3]
"""


@pytest.fixture
def load(tmp_path):
    def load(text):
        path = tmp_path / "grid.yaml"
        path.write_text(text)
        return load_grid(path)

    return load


def test_the_cells_are_the_product_of_the_axes(load):
    cells = load(TEXT).cells()
    plain, hot = 2 * 2 * 2 * 2, 2 * 2 * 2  # models, tasks, seeds and, without the override, both methods
    assert len(cells) == plain + hot
    assert [cell.name for cell in cells[:6]] == [
        "debate-small-arithmetic-plain-seed_0",
        "multiagent_ft-small-arithmetic-plain-seed_0",
        "debate-small-arithmetic-plain-seed_3",
        "multiagent_ft-small-arithmetic-plain-seed_3",
        "multiagent_ft-small-arithmetic-hot-seed_0",
        "multiagent_ft-small-arithmetic-hot-seed_3",
    ]
    assert [cell.model for cell in cells] == ["small"] * 12 + ["wide"] * 12
    last = cells[-1]
    assert (last.method, last.model, last.task, last.override) == ("multiagent_ft", "wide", "sums", "hot")
    config = last.config
    assert (config.method, config.baselines, config.seed, config.task.name) == ("multiagent_ft", (), 3, "addition")
    assert (config.run_dir, config.debate.agents) == ("runs/g/multiagent_ft-wide-sums-hot-seed_3", 6)
    assert (config.sampling.temperature, config.sampling.max_new_tokens) == (2.0, 32)
    assert (cells[0].config.sampling.temperature, cells[0].config.sampling.max_new_tokens) == (0.5, 64)


def test_axes_as_lists_and_axes_left_out(load):
    cells = load("grid: {methods: [base, 'my:own'], tasks: [addition], models: [org/name, dir/other/]}").cells()
    assert [cell.name for cell in cells] == [
        "base-name-addition", "my.own-name-addition", "base-other-addition", "my.own-other-addition"
    ]  # fmt: skip
    assert [cell.config.model.path for cell in cells] == ["org/name"] * 2 + ["dir/other/"] * 2
    (alone,) = load("{seed: 5, baselines: [majority], grid: {methods: [base]}}").cells()
    assert alone.config.baselines == ("majority",)
    assert (alone.name, alone.config.seed, alone.model, alone.task) == ("base", 5, "", "")


def test_options_of_the_command_replace_shared_settings(load):
    grid = load(TEXT).with_shared(ExperimentConfig(run_dir="elsewhere"))
    first = grid.cells()[0]
    assert first.config.run_dir == "elsewhere/debate-small-arithmetic-plain-seed_0"
    assert first.config.sampling.max_new_tokens == 128
    for name, value in (("method", "base"), ("seed", 1)):
        with pytest.raises(UserError, match=rf"is a grid, whose grid\.\w+ determine {name}: leave {name} out"):
            load(TEXT).with_shared(ExperimentConfig(**{name: value}))


def test_the_configuration_of_one_run_is_no_grid(load, tmp_path):
    assert load("seed: 3") is None
    assert load("") is None
    load(TEXT)
    with pytest.raises(UserError, match=r"is a grid of runs, expected the configuration of one run"):
        load_config(tmp_path / "grid.yaml")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{grid: }", r"grid is 'None', expected a mapping with methods, "),
        ("{grid: {}}", r"grid\.methods is '\[\]', expected a list of at least one method"),
        ("{grid: {methods: []}}", r"grid\.methods is '\[\]', expected a list of at least one method"),
        ("{grid: {methods: base}}", r"grid\.methods is 'base', expected a list"),
        ("{grid: {methods: [base, base]}}", r"grid\.methods has 'base' twice"),
        ("{grid: {methods: [base], seed: [1]}}", r"there is no grid\.seed; did you mean grid\.seeds"),
        ("{grid: {methods: [base], seeds: []}}", r"grid\.seeds is '\[\]', expected a list of at least one integer"),
        ("{grid: {methods: [base], seeds: [1, 2, 1]}}", r"grid\.seeds has 1 twice"),
        ("{grid: {methods: [base], seeds: [1, 4294967297]}}", r"grid\.seeds has 1 and 4294967297, which give the same"),
        ("{grid: {methods: [base], seeds: [x]}}", r"grid\.seeds: seed is 'x' \(str\), expected int"),
        ("{grid: {methods: [base], tasks: {}}}", r"grid\.tasks is '\{\}', expected at least one task"),
        ("{grid: {methods: [base], models: [a/x, b/x]}}", r"grid\.models has two values with the label 'x'"),
        ("{grid: {methods: [base], overrides: {}}}", r"grid\.overrides is '\{\}', expected a mapping"),
        ("{grid: {methods: [base], overrides: {a: 3}}}", r"grid\.overrides\.a is '3', expected a mapping of settings"),
        ("{grid: {methods: [base], overrides: {a/b: }}}", r"a label in grid\.overrides is 'a/b', expected letters"),
        (
            "{grid: {methods: [base], overrides: {a: {debate: {agentz: 5}}}}}",
            r"grid\.overrides\.a: there is no field debate\.agentz; did you mean debate\.agents\?",
        ),
        (
            "{grid: {methods: [base], overrides: {a: {debate: {agents: 0}}}}}",
            r"grid\.overrides\.a: debate\.agents is 0, expected at least 1",
        ),
        (
            "{grid: {methods: [base, debate], overrides: {a: {methods: [debat]}}}}",
            r"grid\.overrides\.a\.methods has 'debat'; did you mean 'debate' of grid\.methods\?",
        ),
        ("{grid: {methods: [base], tasks: {addition: {seed: 1}}}}", r"tasks\.addition sets seed: use grid\.seeds"),
        ("{grid: {methods: [base], models: {a: {run_dir: x}}}}", r"models\.a sets run_dir: give it once"),
        ("{method: debate, grid: {methods: [base]}}", r"grid\.methods determine method: leave method out"),
        ("{seed: 1, grid: {methods: [base], seeds: [0]}}", r"grid\.seeds determine seed: leave seed out"),
        (
            "{grid: {methods: [base], overrides: {plain: , three: {debate: {agents: 3}}}}}",
            r"the cells base-plain and base-three have equal settings: remove one",
        ),
        (
            "{grid: {methods: [base], models: {a: , a-b: {debate: {rounds: 3}}}, "
            "tasks: {b-arithmetic: {task: {name: addition}}, arithmetic: }}}",
            r"two cells are named base-a-b-arithmetic: change a label",
        ),
        (
            "{grid: {methods: [base], models: {a: {mesh: {agent: 2}}}}}",
            r"cell base-a: debate\.agents is 3, expected a multiple of mesh\.agent = 2",
        ),
    ],
)  # fmt: skip
def test_grids_that_are_refused(load, text, message):
    with pytest.raises(UserError, match=message):
        load(text).cells()
