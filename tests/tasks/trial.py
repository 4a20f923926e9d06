"""A small prepared data set."""

import json

import tensorflow_datasets as tfds

from mft_jax.tasks.prepared import DamagedError, Prepared, load_prepared, read_records
from mft_jax.tasks.public import LineBuilder

SIZE = 30  # records in each split
SPLITS = ("train", "eval")


class MftTrial(LineBuilder):
    VERSION = tfds.core.Version("1.0.0")
    FIELDS = ("text",)
    SPLITS = SPLITS


def write_originals(directory):
    for split in SPLITS:
        lines = [json.dumps({"text": f"{split} {number}"}) + "\n" for number in range(SIZE)]
        (directory / f"{split}.jsonl").write_text("".join(lines))


def read_texts(builder):
    texts = {split: [record["text"] for record in read_records(builder, split)] for split in SPLITS}
    for split, found in texts.items():
        if len(found) != SIZE:
            raise DamagedError(f"its split {split} has {len(found)} records, expected {SIZE}")
    return texts


def load_trial(directory, originals=write_originals, read=read_texts):
    return load_prepared("trial", Prepared(directory, MftTrial), read, originals)
