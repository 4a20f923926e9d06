"""Chat messages to token ids and back, by the checkpoint's own tokenizer and template, the same for sampling and training."""

import dataclasses
import json
import pathlib
from collections.abc import Sequence
from typing import Any

import numpy as np
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from mft_jax.errors import UserError
from mft_jax.prompts import Message, assistant, user

Encoded = tuple[np.ndarray, np.ndarray]  # ids [T] int32 and the mask [T] bool of the tokens to learn


@dataclasses.dataclass(frozen=True)
class Chat:
    """A tokenizer with its chat template and the tokens that end an assistant's turn."""

    tokenizer: PreTrainedTokenizerFast
    stop_ids: tuple[int, ...]
    thinking: bool = False  # of templates that can have reasoning models think before they answer

    def prompt(self, messages: Sequence[Message]) -> list[int]:
        """Token ids of a dialogue, opened for the assistant's next turn."""
        return self._encode(self._render(messages, opened=True))

    def text(self, ids: Sequence[int]) -> str:
        """The text of sampled ids, without the template's special tokens."""
        return str(self.tokenizer.decode(list(ids), skip_special_tokens=True)).strip()

    def examples(self, messages: Sequence[Message], final_turn_only: bool = False) -> list[Encoded]:
        """A dialogue to learn from: ids [T] int32, and a mask [T] bool of the assistant's tokens, end of turn included.

        It is one example where the template leaves earlier turns as they were when they were sampled. Templates that
        do not (reasoning models drop old thoughts) give an example for each assistant turn, so that training always
        sees the text that sampling saw. Raises UserError when a turn does not go on from its own prompt.
        """
        turns = [i for i, message in enumerate(messages) if message["role"] == "assistant"]
        turns = turns[-1:] if final_turn_only else turns
        text = self._render(messages, opened=False)
        spans = [self._span(messages[: turn + 1]) for turn in turns]
        if all(text.startswith(closed) for _, closed in spans):
            return [self._masked(text, spans)]
        return [self._masked(closed, [(opened, closed)]) for opened, closed in spans]

    def example(self, messages: Sequence[Message], final_turn_only: bool = False) -> Encoded:
        """`examples` of a template that gives one. Raises UserError for another one."""
        found = self.examples(messages, final_turn_only)
        if len(found) > 1:
            raise UserError(
                "The chat template renders an assistant turn differently once the dialogue goes on: give a template that "
                "keeps earlier turns as they were."
            )
        return found[0]

    def _span(self, messages: Sequence[Message]) -> tuple[str, str]:
        """The text up to the last message, the assistant's, and with it: the first is what sampling saw."""
        opened, closed = self._render(messages[:-1], opened=True), self._render(messages, opened=False)
        if not closed.startswith(opened):
            raise UserError(
                "The chat template does not render an assistant turn as going on from its own prompt, so that training would "
                "see other text than sampling: give another one with --model.chat-template FILE."
            )
        return opened, closed

    def _masked(self, text: str, spans: Sequence[tuple[str, str]]) -> Encoded:
        """Ids of `text`, and which of them lie behind the first and within the second text of a span."""
        encoded = self.tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
        ids, offsets = np.asarray(encoded["input_ids"], np.int32), np.asarray(encoded["offset_mapping"]).reshape(-1, 2)
        mask = np.zeros(len(ids), bool)
        for opened, closed in spans:
            inside = (offsets[:, 0] >= len(opened)) & (offsets[:, 1] <= len(closed))
            ends = np.flatnonzero(inside & np.isin(ids, self.stop_ids))
            if len(ends):  # what a template adds after the end of turn (a line break, say) is not the assistant's
                inside[ends[-1] + 1 :] = False
            mask |= inside
        return ids, mask

    def _render(self, messages: Sequence[Message], *, opened: bool) -> str:
        return _apply(self.tokenizer, messages, opened, self.thinking)

    def _encode(self, text: str) -> list[int]:
        return self.tokenizer(text, add_special_tokens=False)["input_ids"]  # the template writes them itself


def load_chat(directory: pathlib.Path, chat_template: str | None = None, thinking: bool = False) -> Chat:
    """Reads the tokenizer of a checkpoint directory; `chat_template` names a file that replaces its template.

    Raises UserError without a tokenizer or a chat template, and for one that cannot render a dialogue.
    """
    try:
        tokenizer: Any = AutoTokenizer.from_pretrained(directory, local_files_only=True, trust_remote_code=False)
    except (OSError, ValueError) as error:
        raise UserError(f"{directory} has no tokenizer that transformers can load ({error}).") from error
    if chat_template is not None:
        tokenizer.chat_template = _read_template(chat_template)
    if not tokenizer.chat_template:
        raise UserError(
            f"The tokenizer of {directory} has no chat template: give one with --model.chat-template FILE (Jinja), or use an "
            "instruct model."
        )
    return Chat(tokenizer, _stop_ids(directory, tokenizer), thinking)


def _read_template(path: str) -> str:
    try:
        return pathlib.Path(path).expanduser().read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(
            f"Cannot read the chat template {path} ({error}): give a file with a Jinja template."
        ) from error


def _apply(tokenizer: Any, messages: Sequence[Message], opened: bool, thinking: bool = False) -> str:
    """The text of a dialogue. Templates that write today's date get a fixed one: a run must not change overnight."""
    options = {"date_string": "26 Jul 2024", "enable_thinking": thinking}  # a template takes what it knows
    try:
        text = tokenizer.apply_chat_template(list(messages), tokenize=False, add_generation_prompt=opened, **options)
    except Exception as error:  # whatever a template raises
        raise UserError(
            f"The chat template cannot render a dialogue of user and assistant turns ({' '.join(str(error).split())}): "
            "give another one with --model.chat-template FILE."
        ) from error
    return str(text)


def _stop_ids(directory: pathlib.Path, tokenizer: PreTrainedTokenizerFast) -> tuple[int, ...]:
    """The end-of-sequence ids of generation_config.json and the tokenizer, and the template's own end of turn."""
    stops = set() if tokenizer.eos_token_id is None else {tokenizer.eos_token_id}
    generation = directory / "generation_config.json"
    if generation.is_file():
        ids = json.loads(generation.read_text()).get("eos_token_id")
        stops |= set(ids if isinstance(ids, list) else [] if ids is None else [ids])
    marker = "0"
    closed = _apply(tokenizer, [user(marker), assistant(marker)], opened=False)
    tail = tokenizer(closed[closed.rindex(marker) + len(marker) :], add_special_tokens=False)["input_ids"]
    if tail and tail[0] in tokenizer.all_special_ids + list(tokenizer.added_tokens_decoder):
        stops.add(tail[0])
    if not stops:
        raise UserError(
            f"The tokenizer of {directory} names no end of turn: set eos_token_id in generation_config.json."
        )
    return tuple(sorted(stops))
