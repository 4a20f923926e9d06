"""Chat messages to token ids and back, by the checkpoint's own tokenizer and template, the same for sampling and training."""

import dataclasses
import os
import pathlib
from collections.abc import Iterator, Sequence
from typing import Any, TypeVar

import numpy as np
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from mft_jax.errors import UserError
from mft_jax.models import template
from mft_jax.models.json_files import not_of_kind, read_json_object, shorten
from mft_jax.prompts import Message, assistant, user

Encoded = tuple[np.ndarray, np.ndarray]  # ids [T] int32 and the mask [T] bool of the tokens to learn
ENCODED_TOGETHER = 256  # dialogues
T = TypeVar("T")
_Span = tuple[str, str]  # two prefixes of a text: what lies between their ends is to be learned


@dataclasses.dataclass(frozen=True)
class Chat:
    """A tokenizer with its chat template and the tokens that end an assistant's turn."""

    tokenizer: PreTrainedTokenizerFast
    stop_ids: tuple[int, ...]
    thinking: bool = False  # whether reasoning models are asked to think before they answer

    def prompt(self, messages: Sequence[Message]) -> list[int]:
        """Token ids of a dialogue, ending with the generation prompt, which opens the assistant's next turn."""
        return self.prompts([messages])[0]

    def prompts(self, dialogues: Sequence[Sequence[Message]]) -> list[list[int]]:
        """`prompt` of each dialogue; of many together it takes a fraction of the time. Equal ones are encoded once."""
        keys = [tuple(tuple(message.items()) for message in messages) for messages in dialogues]
        different = dict(zip(keys, dialogues, strict=True))
        encoded = []
        for part in _parts(list(different.values())):
            texts = self._render([(messages, True) for messages in part])
            encoded += self.tokenizer(texts, add_special_tokens=False)["input_ids"]  # the template writes them itself
        of_key = dict(zip(different, encoded, strict=True))
        return [list(of_key[key]) for key in keys]

    def text(self, ids: Sequence[int]) -> str:
        """The text of sampled ids, without the template's special tokens."""
        return str(self.tokenizer.decode(list(ids), skip_special_tokens=True)).strip()

    def examples(self, messages: Sequence[Message], learned: Sequence[int] | None = None) -> list[Encoded]:
        """A dialogue to learn from: ids [T] int32, and a mask [T] bool of the assistant's tokens, end of turn included.

        `learned` are the assistant's turns to learn, as indices among them (-1: the last); None: all.

        The result is one example if the template renders earlier turns as it did when they were sampled. With other
        templates (those of reasoning models leave old thoughts out) it is an example for each learned turn, so that
        training always sees the text that sampling saw. Raises UserError when a rendered turn does not begin with its own
        prompt, and for an index in `learned` that the dialogue does not have.
        """
        return self.all_examples([(messages, learned)])[0]

    def all_examples(self, dialogues: Sequence[tuple[Sequence[Message], Sequence[int] | None]]) -> list[list[Encoded]]:
        """`examples` of each dialogue and its turns to learn; of many together it takes a fraction of the time."""
        return [pairs for part in _parts(dialogues) for pairs in self._examples_together(part)]

    def _examples_together(
        self, dialogues: Sequence[tuple[Sequence[Message], Sequence[int] | None]]
    ) -> list[list[Encoded]]:
        turns = [_turns_to_learn(messages, learned) for messages, learned in dialogues]
        # What is to be rendered, once: (index of the dialogue, number of its messages, with the generation prompt).
        wanted = dict.fromkeys((i, len(messages), False) for i, (messages, _) in enumerate(dialogues))
        for i, own in enumerate(turns):
            wanted |= dict.fromkeys(key for turn in own for key in ((i, turn, True), (i, turn + 1, False)))
        texts = self._render([(dialogues[i][0][:count], opened) for i, count, opened in wanted])
        rendered = dict(zip(wanted, texts, strict=True))
        found: list[list[tuple[str, list[_Span]]]] = []  # for each dialogue its texts, with their spans to learn
        for i, own in enumerate(turns):
            text = rendered[i, len(dialogues[i][0]), False]
            spans = [_checked_span(rendered[i, turn, True], rendered[i, turn + 1, False]) for turn in own]
            joined = all(text.startswith(closed) for _, closed in spans)
            found.append([(text, spans)] if joined else [(closed, [(opened, closed)]) for opened, closed in spans])
        encoded = iter(self._encode_with_masks([pair for own in found for pair in own]))
        return [[next(encoded) for _ in own] for own in found]

    def example(self, messages: Sequence[Message], learned: Sequence[int] | None = None) -> Encoded:
        """The one example that `examples` gives. Raises UserError for a template with which it gives several."""
        found = self.examples(messages, learned)
        if len(found) > 1:
            raise UserError(
                "The chat template renders an assistant turn differently once others follow: give one that renders earlier "
                "turns unchanged, with --model.chat-template FILE."
            )
        return found[0]

    def _encode_with_masks(self, texts: Sequence[tuple[str, list[_Span]]]) -> list[Encoded]:
        """Ids of each text, and a mask of those in its spans."""
        encoded = self.tokenizer([text for text, _ in texts], add_special_tokens=False, return_offsets_mapping=True)
        columns = zip(encoded["input_ids"], encoded["offset_mapping"], texts, strict=True)
        return [self._with_mask(np.asarray(ids, np.int32), offsets, spans) for ids, offsets, (_, spans) in columns]

    def _with_mask(self, ids: np.ndarray, offsets: Sequence[tuple[int, int]], spans: Sequence[_Span]) -> Encoded:
        """The ids, and a mask of those in the spans. `offsets` are the first character of each token and the one after it."""
        starts, ends = np.asarray(offsets).reshape(-1, 2).T
        mask = np.zeros(len(ids), bool)
        for opened, closed in spans:
            inside = (starts >= len(opened)) & (ends <= len(closed))
            stops = np.flatnonzero(inside & np.isin(ids, self.stop_ids))
            if len(stops):
                # The assistant does not write what a template adds after the end of turn (a line break, say).
                inside[stops[-1] + 1 :] = False
            mask |= inside
        return ids, mask

    def _render(self, dialogues: Sequence[template.Dialogue]) -> list[str]:
        return _render(self.tokenizer, dialogues, self.thinking)


def _parts(items: Sequence[T]) -> Iterator[Sequence[T]]:
    """The items in parts. What a tokenizer returns takes many times the memory of the ids."""
    return (items[start : start + ENCODED_TOGETHER] for start in range(0, len(items), ENCODED_TOGETHER))


def _turns_to_learn(messages: Sequence[Message], learned: Sequence[int] | None) -> list[int]:
    """The indices in `messages` of the assistant's turns to learn. Raises UserError if there is no such turn."""
    turns = [i for i, message in enumerate(messages) if message["role"] == "assistant"]
    if learned is None:
        return turns
    wrong = [index for index in learned if not -len(turns) <= index < len(turns)]
    if wrong:
        raise UserError(
            f"An example learns turn {wrong[0]} of the assistant, counted from 0, but its dialogue has {len(turns)}: "
            "correct the selector of the method."
        )
    return [turns[index] for index in learned]


def _checked_span(opened: str, closed: str) -> _Span:
    """The text before an assistant's turn, as sampling saw it, and the text with it. Raises UserError if they do not match."""
    if not closed.startswith(opened):
        raise UserError(
            "The chat template renders an assistant turn differently from the prompt that opens it, so that training "
            "would see other text than sampling: give another one with --model.chat-template FILE."
        )
    return opened, closed


def load_chat(directory: pathlib.Path, chat_template: str | None = None, thinking: bool = False) -> Chat:
    """Reads the tokenizer of a checkpoint directory; `chat_template` names a file that replaces its template.

    Raises UserError without a tokenizer or a chat template, for a template that cannot render a dialogue or leaves the
    text of its messages out, and if no token ends a turn.
    """
    template.start()
    tokenizer = _load_tokenizer(directory)
    if chat_template is not None:
        tokenizer.chat_template = _read_template(chat_template)
    try:
        tokenizer.get_chat_template()
    except ValueError as error:  # there is none, or several of which none is the default
        raise UserError(
            f"The tokenizer of {directory} has no chat template: give one with --model.chat-template FILE (Jinja), or use an "
            "instruct model."
        ) from error
    end_of_turn = _text_after_an_answer(tokenizer)
    return Chat(tokenizer, _stop_ids(pathlib.Path(directory), tokenizer, end_of_turn), thinking)


def _load_tokenizer(directory: pathlib.Path) -> Any:
    try:
        tokenizer: Any = AutoTokenizer.from_pretrained(directory, local_files_only=True, trust_remote_code=False)
    except Exception as error:  # the libraries raise many kinds, all of which mean that the files are missing or broken
        reason = f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
        raise UserError(
            f"{directory} has no tokenizer that transformers can load ({reason}): download the checkpoint again."
        ) from error
    if not tokenizer.is_fast:
        raise UserError(f"{directory} has no tokenizer.json, which is needed: give a checkpoint with a fast tokenizer.")
    return tokenizer


def _read_template(path: str) -> str:
    try:
        return pathlib.Path(os.path.expanduser(path)).read_text(encoding="utf-8")
    except (OSError, ValueError) as error:  # ValueError: not UTF-8
        raise UserError(
            f"Cannot read the chat template {path} ({error}): give a file with a Jinja template."
        ) from error


def _render(tokenizer: Any, dialogues: Sequence[template.Dialogue], thinking: bool = False) -> list[str]:
    """The texts of dialogues. Templates use the variables that they know."""
    # Templates that write the date always get the same one, so that the prompts of a run do not change overnight.
    variables = tokenizer.special_tokens_map | {"date_string": "26 Jul 2024", "enable_thinking": thinking}
    return template.render_all(tokenizer.get_chat_template(), dialogues, variables=variables)


def _text_after_an_answer(tokenizer: Any) -> str:
    """What the template writes after an assistant turn. Raises UserError when it leaves the text of messages out."""
    texts = [f"text of message {number}" for number in range(1, 5)]
    dialogue = [user(texts[0]), assistant(texts[1]), user(texts[2]), assistant(texts[3])]
    for length in range(1, 5):
        [rendered] = _render(tokenizer, [(dialogue[:length], length % 2 == 1)])
        missing = [message["role"] for message in dialogue[:length] if message["content"] not in rendered]
        if missing:
            raise UserError(
                f"The chat template leaves out the text of a message of the {missing[0]}: give another one with "
                "--model.chat-template FILE."
            )
    return rendered[rendered.rindex(texts[-1]) + len(texts[-1]) :]


def _stop_ids(directory: pathlib.Path, tokenizer: PreTrainedTokenizerFast, end_of_turn: str) -> tuple[int, ...]:
    """The end-of-sequence ids of generation_config.json and the tokenizer, and the template's own end of turn."""
    stops = set(_generation_stop_ids(directory / "generation_config.json"))
    if tokenizer.eos_token_id is not None:
        stops.add(tokenizer.eos_token_id)
    tail = tokenizer(end_of_turn, add_special_tokens=False)["input_ids"]
    if tail and tail[0] in tokenizer.all_special_ids + list(tokenizer.added_tokens_decoder):
        stops.add(tail[0])
    if not stops:
        raise UserError(
            f"The tokenizer of {directory} names no end of turn: set eos_token_id in generation_config.json."
        )
    return tuple(sorted(stops))


def _generation_stop_ids(path: pathlib.Path) -> list[int]:
    """The eos_token_id of a generation_config.json: a token id, a list of them, or none."""
    kind, remedy = "a generation configuration", "download it again, or delete it"
    found = read_json_object(path, kind, remedy).get("eos_token_id") if path.is_file() else None
    ids = found if isinstance(found, list) else [] if found is None else [found]
    if not all(type(token) is int and token >= 0 for token in ids):
        raise not_of_kind(
            path, kind, f"its eos_token_id is {shorten(found)}, expected a token id or a list of them", remedy
        )
    return ids
