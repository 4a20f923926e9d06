"""Runs the scripts against a stand-in for gcloud; see `stand_in/gcloud`."""

import json
import os
import pathlib
import subprocess
import time

import pytest

SCRIPTS = pathlib.Path(__file__).parents[2] / "tpu_scripts"
STAND_IN = pathlib.Path(__file__).parent / "stand_in"
COMMANDS = ("create.sh", "setup.sh", "run.sh", "watch.sh", "fetch.sh", "delete.sh")
SETTINGS = """\
PROJECT=my-project
ZONE=us-west4-a
BUCKET=gs://my-bucket
TPU_TYPE=v5e-8
SPOT=yes
VALID_UNTIL=6h
NAME=mft
CONFIG=configs/quickstart.yaml
RUN_NAME=mine
OPTIONS=(--iterations 2)
SYNC_SECONDS=1
POLL_SECONDS=0.01
SILENT_SECONDS=1000
MAX_RESTARTS=2
"""


class Cloud:
    """A project in the stand-in's cloud."""

    def __init__(self, folder: pathlib.Path):
        self.folder, self.home = folder, folder / "home"
        self.home.mkdir()
        self.settings = folder / "tpu.env"
        self.settings.write_text(SETTINGS)
        self.bucket = folder / "bucket" / "my-bucket"
        self.run = self.bucket / "mine"
        self.environment = {
            "PATH": f"{STAND_IN}:{os.environ['PATH']}",
            "HOME": str(self.home),
            "STAND_IN": str(folder),
            "TMPDIR": str(folder),
        }

    def has(self, **files):
        """Writes files of the stand-in, such as state="ACTIVE", and creates the bucket."""
        self.bucket.mkdir(parents=True, exist_ok=True)
        for name, text in files.items():
            (self.folder / name).write_text(text)

    def has_status(self, word, code=0, *, seconds_ago=0):
        """Writes the status of the run, as its worker does."""
        self.run.mkdir(parents=True, exist_ok=True)
        (self.run / "status").write_text(f"{word} {code} {int(time.time()) - seconds_ago}\n")

    def fails(self, call, says, times=100):
        """Lets the next calls that match a regular expression fail."""
        with open(self.folder / "failures", "a") as file:
            file.write(json.dumps({"call": call, "times": times, "says": says}) + "\n")

    def calls(self, *starts):
        """The calls of gcloud, each as one line; with `starts`, only those that begin with one of them."""
        path = self.folder / "calls"
        lines = [" ".join(json.loads(line)) for line in path.read_text().splitlines()] if path.exists() else []
        lines = [line.removeprefix("compute tpus ") for line in lines]
        return [line for line in lines if line.startswith(starts)] if starts else lines

    @property
    def verbs(self):
        """The calls that change something, by their first words."""
        kinds = (
            "queued-resources create",
            "queued-resources delete",
            "tpu-vm scp",
            "tpu-vm ssh",
            "storage buckets create",
        )
        return [kind for line in self.calls() for kind in kinds if line.startswith(kind)]

    def script(self, name, *options, answer="", **environment):
        """Runs a script to its end: (exit code, output, complaints)."""
        done = subprocess.run(
            [SCRIPTS / name, "--env", self.settings, *options],
            input=answer, env=self.environment | environment, capture_output=True, text=True, timeout=60, check=False,
        )  # fmt: skip
        return done.returncode, done.stdout, done.stderr


@pytest.fixture
def cloud(tmp_path):
    return Cloud(tmp_path)
