"""The scripts for Cloud TPUs against a stand-in for gcloud: nothing is left running and billed without being told."""

import re
import signal
import subprocess
import time

import pytest

from mft_jax.signals import START_AGAIN
from tests.tpu_scripts.conftest import COMMANDS, SCRIPTS, SETTINGS

BILLED = "The TPU mft is ACTIVE and is BILLED while it runs, about $9.60 an hour on demand"
NETWORK = "Unable to reach tpu.googleapis.com: network is unreachable"
WHERE = "--project=my-project --zone=us-west4-a"


def test_shellcheck():
    files = sorted(SCRIPTS.glob("*.sh"))
    assert len(files) == 9
    found = subprocess.run(
        ["shellcheck", "-x", "-P", "SCRIPTDIR", *files], cwd=SCRIPTS, capture_output=True, text=True, check=False
    )
    assert (found.returncode, found.stdout) == (0, "")


@pytest.mark.parametrize("name", COMMANDS)
def test_help_and_wrong_options(cloud, name):
    code, out, _ = cloud.script(name, "--help")
    assert code == 0
    assert f"Usage: ./{name}" in out
    assert "--dry-run    print every command, run none" in out
    code, _, err = cloud.script(name, "--fast")
    assert (code, err.startswith(f"{name}: there is no option --fast: see")) == (1, True)
    assert cloud.calls() == []


@pytest.mark.parametrize(
    ("name", "printed"),
    [
        ("create.sh", ["services enable tpu.googleapis.com", "storage buckets create gs://my-bucket", "--spot"]),
        ("setup.sh", ["scp", "worker_setup.sh", "--worker=all"]),
        ("run.sh", ["storage cp", "gs://my-bucket/mine/config.yaml", "--worker=all"]),
        ("watch.sh", ["cat gs://my-bucket/mine/status", "resources delete mft --force", "resources create mft"]),
        ("fetch.sh", ["storage rsync --recursive gs://my-bucket/mine/run"]),
        ("delete.sh", ["queued-resources delete mft --force --quiet"]),
    ],
)
def test_a_dry_run_prints_every_command_and_runs_none(cloud, name, printed):
    before = set(cloud.folder.rglob("*"))
    code, out, err = cloud.script(name, "--dry-run")
    assert (code, err) == (0, "")
    assert [text for text in printed if text not in out] == []
    assert cloud.calls() == []
    assert set(cloud.folder.rglob("*")) == before


@pytest.mark.parametrize(
    ("old", "new", "complaint"),
    [
        ("PROJECT=my-project", "PROJECT=", "PROJECT is not set: edit"),
        ("gs://my-bucket", "my-bucket", "BUCKET is 'my-bucket', expected gs:// and the name of a bucket"),
        ("v5e-8", "v5e-12", "TPU_TYPE is 'v5e-12', expected v5e-N or v6e-N with N = 1, 4, 8, 16"),
        ("v5e-8", "v5p-4", "TPU_TYPE is 'v5p-4', expected v5e-N"),
        ("SPOT=yes", "SPOT=1", "SPOT is '1', expected yes or no"),
        ("RUN_NAME=mine", "RUN_NAME=../mine", "RUN_NAME is '../mine', expected letters"),
        ("OPTIONS=(--iterations 2)", "OPTIONS='--iterations 2'", "OPTIONS is not a list: write it in parentheses"),
        ("RUN_NAME=mine", "RUN_NAME=mine\nVALID_UNTIL=soon", "VALID_UNTIL is 'soon', expected a time such as"),
        ("MAX_RESTARTS=2", "MAX_RESTARTS=many", "MAX_RESTARTS is 'many', expected a number"),
        ("RUN_NAME=mine", "RUN_NAME=mine\nCONFIG=no.yaml", "there is no configuration "),
        ("SYNC_SECONDS=1", "SYNC_SECONDS=abc", "SYNC_SECONDS is 'abc', expected seconds"),
        ("SILENT_SECONDS=1000", "SILENT_SECONDS=9", "SILENT_SECONDS is 9, expected at least ten"),
        ("RUN_NAME=mine", "RUN_NAME='mine", "cannot be read by bash ("),
        ("RUN_NAME=mine", "RUN_NAME=mine\r", "has the line ends of Windows"),
    ],
)
def test_wrong_settings(cloud, old, new, complaint):
    cloud.settings.write_text(SETTINGS.replace(old, new))
    code, _, err = cloud.script("create.sh", "--yes")
    assert (code, err.count("\n")) == (1, 1)
    assert complaint in err
    assert cloud.calls() == []


# create.sh


def test_create(cloud):
    """The project is prepared, the TPU requested, and its states are followed until it is ready."""
    cloud.folder.joinpath("timeline").write_text("WAITING_FOR_RESOURCES\nPROVISIONING\nACTIVE\n")
    code, out, err = cloud.script("create.sh", answer="y\n")
    assert code == 0, err
    assert "A v5e-8 (8 chips) in us-west4-a of the project my-project costs about $9.60 an hour" in out
    assert re.findall(r"the TPU mft is (\w+)", out) == ["WAITING_FOR_RESOURCES", "PROVISIONING", "ACTIVE"]
    assert BILLED in err
    assert cloud.calls("services", "storage buckets create", "queued-resources create") == [
        "services enable tpu.googleapis.com --project=my-project",
        "storage buckets create gs://my-bucket --project=my-project --location=us-west4 --uniform-bucket-level-access",
        "queued-resources create mft --node-id=mft --accelerator-type=v5litepod-8 --runtime-version=v2-alpha-tpuv5-lite "
        f"--scopes=https://www.googleapis.com/auth/cloud-platform --valid-until-duration=6h --spot {WHERE}",
    ]
    code, out, _ = cloud.script("create.sh")
    assert (code, "has been requested before; it is ACTIVE" in out) == (0, True)
    assert cloud.verbs.count("queued-resources create") == 1


@pytest.mark.parametrize(
    ("kind", "accelerator", "runtime", "dollars"),
    [
        ("v6e-4", "v6e-4", "v2-alpha-tpuv6e", "10.80"),
        ("v5p-8", "v5p-8", "v2-alpha-tpuv5", "16.80"),
        ("v5e-16", "v5litepod-16", "v2-alpha-tpuv5-lite", "19.20"),
        ("v6e-256", "v6e-256", "v2-alpha-tpuv6e", "691.20"),
        ("v5p-32", "v5p-32", "v2-alpha-tpuv5", "67.20"),
    ],
)
def test_other_tpus_on_demand(cloud, kind, accelerator, runtime, dollars):
    cloud.settings.write_text(SETTINGS.replace("v5e-8", kind).replace("SPOT=yes", "SPOT=no"))
    cloud.has()
    code, out, err = cloud.script("create.sh", "--yes", "--no-wait")
    assert (code, f"about ${dollars} an hour" in out, "less as spot" in out) == (0, True, False)
    (call,) = cloud.calls("queued-resources create")
    assert f"--accelerator-type={accelerator} --runtime-version={runtime} " in call
    assert "--spot" not in call
    assert "is WAITING_FOR_RESOURCES and is BILLED" in err


@pytest.mark.parametrize("answer", ["n\n", ""])
def test_create_asks(cloud, answer):
    code, _, err = cloud.script("create.sh", answer=answer)
    assert (code, cloud.verbs, err) == (1, [], "create.sh: nothing was requested.\n")


def test_without_quota_nothing_is_requested(cloud):
    cloud.has()
    cloud.fails("queued-resources create", "RESOURCE_EXHAUSTED: Quota 'TPUV5sPreemptibleLitepodPerProject' exhausted.")
    code, _, err = cloud.script("create.sh", "--yes")
    assert code == 1
    assert (
        "create.sh: the TPU was not requested, and nothing is billed: ask for more preemptible (spot) TPU quota" in err
    )
    assert "BILLED" not in err


def test_a_bucket_without_permission(cloud):
    cloud.fails("buckets describe", "HTTPError 403: me@example.com does not have permission to access b [my-bucket]")
    code, _, err = cloud.script("create.sh", "--yes")
    assert (code, cloud.verbs) == (1, [])
    assert "roles TPU Admin, Service Account User and Storage Admin in the project my-project. Nothing was req" in err


def test_a_request_that_fails_but_exists_is_told(cloud):
    cloud.has(state="ACTIVE")
    cloud.fails("queued-resources describe", "NOT_FOUND", times=1)
    cloud.fails("queued-resources create", NETWORK)
    code, _, err = cloud.script("create.sh", "--yes")
    assert (code, BILLED in err) == (1, True)


def test_a_request_of_which_nothing_is_known_is_told(cloud):
    cloud.has()
    cloud.fails("queued-resources describe", "NOT_FOUND", times=1)
    cloud.fails("queued-resources", NETWORK)
    code, _, err = cloud.script("create.sh", "--yes")
    assert code == 1
    assert "It is NOT KNOWN whether the TPU mft exists. If it does, it is BILLED" in err


def test_a_request_that_expires(cloud):
    cloud.has(timeline="WAITING_FOR_RESOURCES\nFAILED\n")
    code, _, err = cloud.script("create.sh", "--yes")
    assert code == 1
    assert "has ended as FAILED" in err
    assert "nothing is billed: remove it with ./delete.sh, and try another ZONE" in err
    code, _, err = cloud.script("create.sh", "--yes")
    assert "there is an old request mft that is FAILED: remove it with ./delete.sh" in err
    assert cloud.verbs.count("queued-resources create") == 1


def test_stopped_while_it_waits(cloud):
    cloud.has()
    process = subprocess.Popen(
        [SCRIPTS / "create.sh", "--env", cloud.settings, "--yes"],
        env=cloud.environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert any("is WAITING_FOR_RESOURCES" in line for line in process.stdout)
    process.send_signal(signal.SIGTERM)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "The request for the TPU mft stays, and is billed as soon as it is granted" in err


# setup.sh, run.sh


def test_setup(cloud):
    cloud.has(state="ACTIVE")
    code, _, err = cloud.script("setup.sh", HF_TOKEN="hf_secret")
    assert (code, BILLED in err) == (0, True)
    archive, token, install = cloud.calls("tpu-vm")[-3:]
    assert archive.endswith(f"mft_jax.tgz mft:mft_jax.tgz --worker=all {WHERE}")
    assert token.endswith(f"hf_token mft:.hf_token --worker=all {WHERE}")
    assert "bash mft/tpu_scripts/worker_setup.sh --worker=all" in install
    assert "A run is going on here." in install
    assert "hf_secret" not in "".join(cloud.calls())
    assert list(cloud.folder.glob("tmp.*")) == []  # neither the archive nor the token stay on this computer


def test_one_worker_fails_to_install(cloud):
    cloud.has(state="ACTIVE")
    cloud.fails("tpu-vm ssh", "##### Command execution on worker 3 failed with exit status 1")
    code, out, err = cloud.script("setup.sh")
    assert code == 1
    assert "worker 3 failed" in err
    assert BILLED in err
    assert "setup.sh: mft_jax was not installed on every worker of mft, see above" in err
    assert "Next" not in out


@pytest.mark.parametrize("name", ["setup.sh", "run.sh"])
@pytest.mark.parametrize(
    ("state", "complaint"),
    [
        (None, "there is no TPU mft in us-west4-a: run ./create.sh first."),
        ("PROVISIONING", "is PROVISIONING, not yet ACTIVE"),
        ("SUSPENDED", "it was taken back or never granted. ./watch.sh asks for a new one"),
    ],
)
def test_they_need_a_tpu(cloud, name, state, complaint):
    cloud.has(**{"state": state} if state else {})
    code, _, err = cloud.script(name)
    assert (code, complaint in err, cloud.verbs) == (1, True, [])


def test_run(cloud):
    cloud.has(state="ACTIVE")
    code, out, err = cloud.script("run.sh")
    assert code == 0, err
    assert (cloud.run / "config.yaml").read_text() == (SCRIPTS.parent / "configs/quickstart.yaml").read_text()
    assert (cloud.run / "status").read_text().startswith("starting 0 ")
    settings, start = cloud.calls("tpu-vm")[-2:]
    assert settings.endswith(f"run.env mft:mft-run.env --worker=all {WHERE}")
    assert "--command=bash mft/tpu_scripts/worker_run.sh --detach --worker=all" in start
    assert "Next: ./watch.sh" in out
    assert BILLED in err


def test_a_run_that_is_going_on_keeps_its_configuration(cloud):
    """As long as its worker reports. Workers that do not run it are started."""
    cloud.has(state="ACTIVE")
    cloud.has_status("running", seconds_ago=900)
    (cloud.run / "config.yaml").write_text("iterations: 7\n")
    code, out, err = cloud.script("run.sh")
    assert code == 0, err
    assert "The run mine is going on; changes to" in out
    assert (cloud.run / "config.yaml").read_text() == "iterations: 7\n"
    assert (cloud.run / "status").read_text().startswith("running 0 ")
    assert "worker_run.sh --detach" in cloud.calls("tpu-vm ssh")[-1]
    cloud.has_status("running", seconds_ago=1100)  # silent for longer than SILENT_SECONDS
    cloud.script("run.sh")
    assert (cloud.run / "config.yaml").read_text() != "iterations: 7\n"
    assert (cloud.run / "status").read_text().startswith("starting 0 ")


def test_the_run_does_not_start_on_one_worker(cloud):
    cloud.has(state="ACTIVE")
    cloud.fails("tpu-vm ssh", "##### Command execution on worker 1 failed with exit status 127")
    code, _, err = cloud.script("run.sh")
    assert (code, BILLED in err) == (1, True)
    assert "the run was not started on every worker of mft (if mft_jax is not installed there, ./setup.sh" in err


# watch.sh


def test_a_finished_run_still_costs(cloud):
    cloud.has(state="ACTIVE")
    cloud.has_status("stopped", 0)
    code, out, err = cloud.script("watch.sh")
    assert (code, cloud.verbs) == (0, [])
    assert "The run has finished. Next: ./fetch.sh" in out
    assert BILLED in err


@pytest.mark.parametrize(
    "taken_back",
    [
        {"timeline": "ACTIVE\nSUSPENDED\nWAITING_FOR_RESOURCES\nACTIVE\n"},
        {"timeline": "ACTIVE\nPROVISIONING\nACTIVE\n", "node": "PREEMPTED"},
    ],
)
def test_a_preempted_run_goes_on_with_a_new_tpu(cloud, taken_back):
    """Removed, requested, installed, started, in this order; then the run finishes, and the TPU is deleted.

    Sometimes only the machine says that it was taken back, and the request is ACTIVE.
    """
    cloud.has(state="ACTIVE", starts="stopped 0 0\n", **taken_back)
    cloud.has_status("running")
    code, out, err = cloud.script("watch.sh", "--delete-when-done")
    assert code == 0, err
    assert "is SUSPENDED: requesting a new one, about $9.60 an hour" in out
    assert "The TPU mft has been deleted." in out
    install, start = ["tpu-vm scp", "tpu-vm ssh"], ["tpu-vm scp", "tpu-vm ssh"]
    replace = ["queued-resources delete", "queued-resources create"]
    assert cloud.verbs == [*replace, *install, *start, "queued-resources delete"]
    assert "BILLED" in err  # said when the run was started again


@pytest.mark.parametrize("code", [START_AGAIN, 143])
def test_a_run_that_was_stopped_to_be_continued_is_started_again(cloud, code):
    cloud.has(state="ACTIVE", starts="stopped 0 0\n")
    cloud.has_status("stopped", code)
    assert cloud.script("watch.sh")[0] == 0
    assert cloud.verbs == ["tpu-vm scp", "tpu-vm ssh"]


def test_a_failed_run_is_shown_and_still_costs(cloud):
    cloud.has(state="ACTIVE")
    cloud.has_status("stopped", 1)
    (cloud.run / "log.txt").write_text("mft: the loss is not finite.\n")
    code, _, err = cloud.script("watch.sh")
    assert (code, cloud.verbs) == (1, [])
    assert "mft: the loss is not finite." in err
    assert BILLED in err
    assert "the run has failed with exit code 1" in err


def test_a_silent_worker_is_started_again_but_not_for_ever(cloud):
    cloud.has(state="ACTIVE", starts="starting 0 0\n" * 5)
    cloud.has_status("running", seconds_ago=5000)
    code, out, err = cloud.script("watch.sh")
    assert code == 1
    assert out.count("the worker has not reported for") == 2
    assert "the run was started 2 times without progress: read its log" in err
    assert BILLED in err


def test_no_quota_for_a_new_tpu(cloud):
    cloud.has(state="SUSPENDED")
    cloud.has_status("stopped", START_AGAIN)
    cloud.fails("queued-resources create", "Quota limit exceeded")
    code, _, err = cloud.script("watch.sh")
    assert code == 1
    assert "no new TPU could be requested: ask for more preemptible (spot) TPU quota" in err
    assert "The run is in gs://my-bucket/mine." in err


def test_a_new_tpu_that_is_not_granted(cloud):
    """Requested again as often as the settings say, then told; nothing is billed, and the run is not started."""
    cloud.has(state="SUSPENDED", timeline="SUSPENDED\nWAITING_FOR_RESOURCES\nFAILED\nFAILED\nFAILED\nFAILED\n")
    cloud.has_status("stopped", START_AGAIN)
    code, _, err = cloud.script("watch.sh")
    assert code == 1
    assert cloud.verbs == ["queued-resources delete", "queued-resources create"] * 2
    assert "the run was started 2 times without progress" in err
    assert "BILLED" not in err


def test_a_finished_run_needs_no_new_tpu(cloud):
    cloud.has(state="SUSPENDED")
    cloud.has_status("stopped", 0)
    code, _, err = cloud.script("watch.sh")
    assert (code, cloud.verbs, "BILLED" in err) == (0, [], False)


def test_a_short_break_of_the_network_is_waited_for(cloud):
    cloud.has(state="ACTIVE")
    cloud.has_status("stopped", 0)
    cloud.fails("queued-resources describe", NETWORK, times=2)
    cloud.fails("storage cat", NETWORK, times=1)
    code, _, err = cloud.script("watch.sh")
    assert code == 0
    assert err.count("The state of the TPU mft cannot be read") == 2
    assert err.count("The status of the run cannot be read") == 1


def test_the_network_goes_while_the_finished_tpu_is_deleted(cloud):
    cloud.has(state="ACTIVE")
    cloud.has_status("stopped", 0)
    cloud.fails("queued-resources delete", NETWORK)
    code, _, err = cloud.script("watch.sh", "--delete-when-done")
    assert code == 1
    assert BILLED in err
    assert "it could not be confirmed that the TPU mft is deleted" in err


# delete.sh, fetch.sh


@pytest.mark.parametrize(
    ("status", "said"),
    [
        (("stopped", 0), "The run mine has finished and is in gs://my-bucket/mine."),
        (("running",), "The run mine has NOT finished."),
        (None, "The run mine was never started."),
    ],
)
def test_delete(cloud, status, said):
    cloud.has(state="ACTIVE")
    if status:
        cloud.has_status(*status)
    code, out, err = cloud.script("delete.sh", answer="y\n")
    assert (code, said in out + err, "is deleted and costs nothing any more" in out) == (0, True, True)
    assert cloud.calls("queued-resources delete") == [f"queued-resources delete mft --force --quiet {WHERE}"]
    code, out, _ = cloud.script("delete.sh")
    assert (code, "There is no TPU mft" in out) == (0, True)


@pytest.mark.parametrize("answer", ["n\n", ""])
def test_delete_always_asks(cloud, answer):
    cloud.has(state="ACTIVE")
    code, _, err = cloud.script("delete.sh", answer=answer)
    assert (code, cloud.verbs, BILLED in err, "delete.sh: nothing was deleted." in err) == (1, [], True, True)


def test_the_network_goes_while_deleting(cloud):
    """The TPU is still there afterwards, and it is said that it is billed; the next try succeeds."""
    cloud.has(state="ACTIVE")
    cloud.has_status("running")
    cloud.fails("queued-resources delete", NETWORK, times=1)
    code, _, err = cloud.script("delete.sh", answer="y\n")
    assert (code, BILLED in err) == (1, True)
    assert "it could not be confirmed that the TPU mft is deleted; it is ACTIVE" in err
    assert cloud.script("delete.sh", answer="y\n")[0] == 0


def test_nothing_is_known_after_deleting(cloud):
    cloud.has(state="ACTIVE")
    cloud.has_status("running")
    process = subprocess.Popen(
        [SCRIPTS / "delete.sh", "--env", cloud.settings],
        env=cloud.environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    while not cloud.calls("storage cat"):  # it has looked, and asks now
        time.sleep(0.01)
    cloud.fails("queued-resources", NETWORK)
    _, err = process.communicate("y\n", timeout=60)
    assert process.returncode == 1
    assert "It is NOT KNOWN whether the TPU mft exists. If it does, it is BILLED" in err
    assert "run ./delete.sh again" in err


def test_fetch(cloud, tmp_path):
    cloud.has()
    code, _, err = cloud.script("fetch.sh")
    assert (code, err) == (1, "fetch.sh: there is no run mine in gs://my-bucket: start it with ./run.sh.\n")
    cloud.has(state="ACTIVE")
    cloud.has_status("stopped", 75)
    (cloud.run / "run").mkdir()
    (cloud.run / "run" / "results.json").write_text("[]")
    code, out, err = cloud.script("fetch.sh", f"--to={tmp_path / 'here'}")
    assert (code, "ended with exit code 75" in out, "There is no log" in err) == (0, True, True)
    assert BILLED in err
    assert (tmp_path / "here" / "results.json").read_text() == "[]"
