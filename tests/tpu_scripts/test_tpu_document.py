"""docs/tpu.md, tpu.env and skypilot.yaml agree with the scripts."""

import re

import yaml

from mft_jax.plan.chips import SLICES
from mft_jax.signals import START_AGAIN
from tests.tpu_scripts.conftest import COMMANDS, SCRIPTS, SETTINGS

DOCUMENT = (SCRIPTS.parent / "docs/tpu.md").read_text()


def test_the_documented_commands_are_accepted(cloud):
    lines = re.findall(r"(?:^    |`)tpu_scripts/(\w+\.sh) --env my\.env([^#`\n]*)", DOCUMENT, re.MULTILINE)
    assert {name for name, _ in lines} == set(COMMANDS)
    for name, options in lines:
        assert cloud.script(name, *options.split(), "--dry-run")[0] == 0


def test_the_documented_tpus(cloud):
    """The names, and the price of an hour, are those of the scripts and of `mft plan`."""
    cells = [line.strip("| ").split(" | ") for line in DOCUMENT.splitlines() if line.startswith("| `v")]
    assert len(cells) == 4  # three TPUs, and one line on what to do when a model does not fit
    for kind, _, _, accelerator, runtime, dollars in cells[:3]:
        cloud.settings.write_text(SETTINGS.replace("v5e-8", kind.strip("`")))
        _, out, _ = cloud.script("create.sh", "--dry-run")
        assert f"costs about {dollars} an hour" in out
        planned = SLICES[kind.strip("`")]
        assert f"${planned.count * planned.chip.on_demand:.2f}" == dollars
        assert f"--accelerator-type={accelerator.strip('`')} --runtime-version={runtime.strip('`')} " in out


def test_the_settings_are_documented_where_they_are_set():
    """Every setting of the tests' file is in tpu.env, which needs only three changes to be usable."""
    names = re.findall(r"^(\w+)=", (SCRIPTS / "tpu.env").read_text(), re.MULTILINE)
    assert set(names) == set(re.findall(r"^(\w+)=", SETTINGS, re.MULTILINE))


def test_skypilot_agrees_with_the_scripts():
    task = yaml.safe_load((SCRIPTS / "skypilot.yaml").read_text())
    resources = task["resources"]
    assert resources["job_recovery"]["recover_on_exit_codes"] == [START_AGAIN, 143]
    assert resources["accelerators"] == "tpu-v5litepod-8"
    common, worker = (SCRIPTS / "common.sh").read_text(), (SCRIPTS / "worker_run.sh").read_text()
    assert f"RUNTIME={resources['accelerator_args']['runtime_version']} " in common
    given = {*task["envs"], *re.findall(r"(\w+)=", task["run"])}
    assert {"STORE", "RUN_NAME", "SYNC_SECONDS"} <= given
    assert "SYNC_SECONDS" in worker
