"""The fixtures of the finetuning tests, also used by the tests of the training program."""

from tests.finetuning.conftest import chat, examples, plan

__all__ = ["chat", "examples", "plan"]
