"""Multiagent finetuning: a society of language-model agents that debates, votes, and finetunes itself.

    import mft_jax
    config = mft_jax.load_config("configs/quickstart.yaml")
    results = mft_jax.run(config)

`run` runs a whole experiment. `prepare` returns its parts (session, questions, method) for use in your own code.
"""

from __future__ import annotations

import importlib

TYPE_CHECKING = False  # a type checker takes it as True; the import of `typing` would delay the `mft` command
if TYPE_CHECKING:
    from typing import Any

__version__ = "0.1.0"

# The module of each public name. It is imported at the first use of the name, so that `mft --help` does not import JAX.
_PUBLIC = {
    "mft_jax.ask": ("Asked", "Panel", "open_panel"),
    "mft_jax.config": (
        "AskOptions", "Change", "DebateConfig", "Difference", "ExperimentConfig", "FeedbackConfig", "FinetuningConfig",
        "LoraConfig", "MeshConfig", "MetricsConfig", "ModelSource", "PolicyConfig", "PreferenceConfig", "RoleConfig",
        "SamplingConfig", "TaskConfig", "compare", "from_dict", "from_yaml", "load_config", "to_yaml", "validate",
    ),
    "mft_jax.debate": ("AgentTranscript", "Debate", "Protocol", "Transcript", "Turn", "Watcher"),
    "mft_jax.errors": ("UserError",),
    "mft_jax.exchange": ("export", "import_adapters"),
    "mft_jax.experiment": ("evaluate", "run"),
    "mft_jax.finetuning": (
        "ClippedPolicyGradient", "DesirablePreference", "Dialogues", "DirectPreference", "FirstAnswers", "Lesson",
        "likelihood", "select_examples",
    ),
    "mft_jax.methods": ("Method", "make_method"),
    "mft_jax.metrics.statistics": ("Comparison", "bootstrap_interval", "compare_with_first", "holm", "paired_test"),
    "mft_jax.models.lora": ("Adapter",),
    "mft_jax.models.merge": ("merge_checkpoint",),
    "mft_jax.models.peft": ("load_peft", "save_peft"),
    "mft_jax.metrics.ledger": ("Cost", "Ledger"),
    "mft_jax.models.society": ("Society",),
    "mft_jax.report.page": ("write_report",),
    "mft_jax.report.progress": ("SilentReporter", "TerminalReporter"),
    "mft_jax.report.status": ("render_status",),
    "mft_jax.report.table": ("render_results", "results_table"),
    "mft_jax.opening": ("open_session", "prepare"),
    "mft_jax.plan.fit": ("choose_mesh",),
    "mft_jax.runs.directory": ("RunDirectory",),
    "mft_jax.runs.results": ("Result", "read_results"),
    "mft_jax.runs.status": ("StageStatus", "Status", "read_status"),
    "mft_jax.sampling": ("Completion", "Request", "Sampler", "Score", "Text", "compare_speakers", "score_texts"),
    "mft_jax.seeds": ("row_key",),
    "mft_jax.session": ("Session",),
    "mft_jax.setup": ("Setup",),
    "mft_jax.steps": ("Finetuned", "Steps", "load_society"),
    "mft_jax.tasks": ("Question", "Task", "load_task"),
}  # fmt: skip
_MODULE_OF = {name: module for module, names in _PUBLIC.items() for name in names}

__all__ = sorted(_MODULE_OF)


def __getattr__(name: str) -> Any:
    if name not in _MODULE_OF:
        raise AttributeError(f"module 'mft_jax' has no attribute {name!r}; it has {', '.join(__all__)}.")
    return getattr(importlib.import_module(_MODULE_OF[name]), name)


def __dir__() -> list[str]:
    return __all__
