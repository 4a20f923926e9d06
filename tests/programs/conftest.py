"""The data of the finetuning tests, for the train program."""

from tests.finetuning.conftest import chat, examples, plan

__all__ = ["chat", "examples", "plan"]
