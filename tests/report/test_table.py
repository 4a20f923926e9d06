import dataclasses
import re

from rich.console import Console

from mft_jax.report.table import results_table
from mft_jax.runs.results import Result

BASE = Result(
    method="base", iteration=0, task="arithmetic", n=200, accuracy=0.54, stderr=0.03524, prompt_tokens=12345,
    new_tokens=67, flops=1, device_seconds=1.0, wall_seconds=1234.56, diversity=None,
)  # fmt: skip
TUNED = dataclasses.replace(
    BASE, method="multiagent_ft", iteration=2, accuracy=0.72, diversity={"consensus": 0.75, "diversity": 0.25}
)


def rendered(results: list[Result]) -> list[list[str]]:
    console = Console(width=120)
    with console.capture() as capture:
        console.print(results_table(results))
    above, *rows = [line for line in capture.get().splitlines() if line.strip() and "─" not in line]
    assert above.split() == ["accuracy", "prompt", "new"]
    return [re.split(r"\s{2,}", row.strip()) for row in rows]


def test_a_row_per_result():
    assert rendered([BASE, TUNED]) == [
        ["method", "iter.", "%", "tokens", "tokens", "seconds", "diversity"],
        ["base", "0", "54.0 ± 3.5", "12.3 k", "67", "1,234.6", "-"],
        ["multiagent_ft", "2", "72.0 ± 3.5", "12.3 k", "67", "1,234.6", "0.25"],
    ]


def test_several_tasks_get_a_column():
    header, _, last = rendered([BASE, dataclasses.replace(TUNED, task="gsm8k")])
    assert header[1] == "task"
    assert last[:2] == ["multiagent_ft", "gsm8k"]
