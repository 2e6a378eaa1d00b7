"""A model's tokenizer and chat template, as the router and the engines need them.

Prompts are rendered from the model's own chat template; what a client wrote never becomes a special token, not
even where it reads like one. Text comes from each token's own bytes, so that nothing is ever decoded, joined and
encoded again, and a character that straddles two tokens, two steps or two models comes out whole.
"""

from __future__ import annotations

import json
import re
from array import array
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from router.steps import Mark, Marks

THINK_TAGS = ("<think>", "</think>")
THINKING = {"enable_thinking": True, "thinking": True}
"""What templates of models that can do without want to be told; others look for neither."""

GUARD = "\ue000"
"""A private-use character that breaks up special tokens in a client's text while the template is rendered. Where
the client wrote it, it stands twice."""


class TemplateError(ValueError):
    """The model's chat template refuses the messages; the message says why."""


@dataclass(frozen=True, eq=False)
class Vocabulary:
    """Tokens of one model.

    ids: token to ID. roles: IDs of `open` and `close` of the thinking (absent without think tags) and `end`.
    visible: UTF-8 bytes of each ID as a client sees it, shape (vocabulary,); special tokens have none.
    rows: IDs that the model has an embedding for; a tokenizer may know more.
    marks: what each ID does to a step.
    plain, after_special, going_on: the tokenizer without its added tokens, for text at a prompt's beginning, behind a
    special token, and in the middle of a text. Most make no difference; those of SentencePiece may put a space first.
    """

    name: str
    ids: Mapping[str, int] = field(repr=False)
    roles: Mapping[str, int]
    visible: Sequence[bytes] = field(repr=False)
    marks: Marks = field(repr=False)
    rows: int
    _tokenizer: Any = field(repr=False)
    _plain: Any = field(repr=False)
    _after_special: Any = field(repr=False)
    _going_on: Any = field(repr=False)
    _special: re.Pattern[str] = field(repr=False)

    @classmethod
    def load(
        cls,
        model: str,
        *,
        name: str | None = None,
        revision: str | None = None,
        think_tags: tuple[str, str] | None = THINK_TAGS,
    ) -> Vocabulary:
        """From a folder or a hub ID. Without `think_tags`, or where a model lacks them, it reasons in plain text."""
        from tokenizers import Tokenizer
        from transformers import AutoTokenizer

        tokenizer = AutoTokenizer.from_pretrained(model, revision=revision)
        backend = json.loads(tokenizer.backend_tokenizer.to_str())
        byte_level = "ByteLevel" in json.dumps(backend.get("decoder"))
        # Without its added tokens a tokenizer cannot produce them, whatever the text says.
        bare = {**backend, "added_tokens": [], "truncation": None, "padding": None}
        plain, after_special, going_on = (
            json.dumps(
                {**bare, **{part: _spacing(bare.get(part), schemes) for part in ("normalizer", "pre_tokenizer")}}
            )
            for schemes in (("first", "always"), ("always",), ())
        )
        tokenizers = {layout: Tokenizer.from_str(layout) for layout in {plain, after_special, going_on}}
        added = tokenizer.added_tokens_decoder
        ids = tokenizer.get_vocab()
        texts = [b""] * (max(ids.values()) + 1)
        for token, i in ids.items():
            texts[i] = token.encode() if i in added else _token_bytes(token, byte_level=byte_level)
        roles = {} if tokenizer.eos_token_id is None else {"end": tokenizer.eos_token_id}
        if think_tags and all(tag in ids for tag in think_tags) and think_tags[0] in (tokenizer.chat_template or ""):
            roles["open"], roles["close"] = (ids[tag] for tag in think_tags)
        ends = {*_generation_ends(model, revision)} | ({roles["end"]} if "end" in roles else set())
        special = {i for i, token in added.items() if token.special} | ends
        longest_first = sorted(added.values(), key=lambda token: len(str(token)), reverse=True)
        return cls(
            name=name or model,
            ids=ids,
            roles=roles,
            visible=[b"" if i in special else text for i, text in enumerate(texts)],
            marks=Marks.of(texts, close=roles.get("close"), ends=ends),
            rows=_rows(model, revision) or len(texts),
            _tokenizer=tokenizer,
            _plain=tokenizers[plain],
            _after_special=tokenizers[after_special],
            _going_on=tokenizers[going_on],
            _special=re.compile("(" + ("|".join(map(_pattern, longest_first)) or "(?!)") + ")"),
        )

    @property
    def thinks(self) -> bool:
        return "close" in self.roles

    @property
    def closing(self) -> list[int]:
        """What ends the thinking when the model does not do it."""
        return [self.roles["close"], *self.encode("\n\n")] if self.thinks else []

    def same_prompts(self, other: Vocabulary) -> bool:
        """Whether both render and read everything alike."""
        return (
            self.ids == other.ids
            and self._tokenizer.chat_template == other._tokenizer.chat_template
            and self._plain.to_str() == other._plain.to_str()
        )

    def encode(self, text: str) -> list[int]:
        """IDs of plain text that goes on where other text ends; special tokens in it stay text."""
        return _ids(self._going_on, text)

    def encode_raw(self, text: str, *, begins: bool = True) -> list[int]:
        """IDs of a raw prompt, in which special tokens are special (as /v1/completions has it). begins: put before it
        what the model was trained to see first, if anything."""
        return self._tokenizer.encode(text, add_special_tokens=begins)

    def bytes(self, ids: Iterable[int]) -> bytes:
        visible, size = self.visible, len(self.visible)
        return b"".join([visible[i] for i in ids if i < size])

    def text(self, ids: Iterable[int]) -> str:
        return self.bytes(ids).decode("utf-8", errors="replace")

    def render(self, messages: Sequence[Mapping[str, object]]) -> array[int]:
        """The prompt for a chat, its thinking opened exactly once. Raises `TemplateError`."""
        # A template may print any field, and all of them are the client's.
        guarded = [{k: self._guard(str(v or "")) for k, v in {"content": "", **m}.items()} for m in messages]
        try:
            text = self._tokenizer.apply_chat_template(
                guarded, tokenize=False, add_generation_prompt=True, **(THINKING if self.thinks else {})
            )
        except Exception as error:
            why = " ".join(str(error).split())
            raise TemplateError(f"the chat template of {self.name} refuses these messages: {why}") from error
        ids = array("i")
        for i, part in enumerate(self._special.split(text)):
            if i % 2:
                ids.append(self.ids[part] if part in self.ids else self.ids[part.strip()])
            elif part:
                ids.extend(_ids(self._after_special if i else self._plain, _GUARDS.sub(r"\1", part)))
        if self.thinks:
            self._open(ids)
        return ids

    def _open(self, ids: array[int]) -> None:
        """Open the thinking, unless the template has; one that it has closed again, empty, is taken back."""
        opening, tags = self.roles["open"], (self.roles["open"], self.roles["close"])
        if opening in ids[-4:] and self.roles["close"] not in ids[-4:]:
            return
        end = len(ids)
        while end and (ids[end - 1] in tags or self.marks[ids[end - 1]] & Mark.BLANK):
            end -= 1
        if closed := [at for at in range(end, len(ids)) if ids[at] in tags]:
            del ids[closed[0] :]
        ids.append(opening)
        ids.extend(self.encode("\n"))

    def _guard(self, text: str) -> str:
        # Every gap is filled, the one behind it too, because special tokens may overlap.
        text = text.replace(GUARD, GUARD + GUARD)
        return self._special.sub(lambda found: found[0] if found[0].isspace() else GUARD.join([*found[0], ""]), text)


def _ids(tokenizer: Any, text: str) -> list[int]:
    # "Fast" leaves out where each token stands in the text, a quarter of the time; there is no such call for one.
    return tokenizer.encode_batch_fast([text], add_special_tokens=False)[0].ids  # type: ignore[no-any-return]


def _spacing(part: Any, schemes: Collection[str]) -> Any:
    """A part of a tokenizer's layout that puts a space before a text under these of its schemes only. What has no
    scheme does it "always"."""
    match part:
        case {"type": "Prepend"} if "always" not in schemes:
            return None
        case dict():
            made = {name: _spacing(value, schemes) for name, value in part.items()}
            if "prepend_scheme" in made:
                made["prepend_scheme"] = made["prepend_scheme"] if made["prepend_scheme"] in schemes else "never"
            elif "add_prefix_space" in made:
                made["add_prefix_space"] = made["add_prefix_space"] and "always" in schemes
            return made
        case list():
            return [made for made in (_spacing(value, schemes) for value in part) if made is not None]
    return part


def _rows(model: str, revision: str | None) -> int | None:
    from transformers import AutoConfig

    try:
        return int(AutoConfig.from_pretrained(model, revision=revision).get_text_config().vocab_size)
    except (OSError, ValueError, AttributeError):  # none there, or none that this version knows
        return None


def _generation_ends(model: str, revision: str | None) -> list[int]:
    from transformers import GenerationConfig

    try:
        ends = GenerationConfig.from_pretrained(model, revision=revision or "main").eos_token_id
    except OSError:
        return []
    return [] if ends is None else [ends] if isinstance(ends, int) else list(ends)


def _byte_alphabet() -> dict[str, int]:
    """The printable character that stands for each byte in byte-level BPE (GPT-2's table), inverted."""
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    rest = [b for b in range(256) if b not in printable]
    return {chr(b): b for b in printable} | {chr(256 + n): b for n, b in enumerate(rest)}


_BYTES = _byte_alphabet()
_GUARDS = re.compile(f"{GUARD}({GUARD}?)")


def _pattern(token: Any) -> str:
    """What of a text an added token takes up: some swallow the white space beside them."""
    return (r"\s*" if token.lstrip else "") + re.escape(str(token)) + (r"\s*" if token.rstrip else "")


def _token_bytes(token: str, *, byte_level: bool) -> bytes:
    if byte_level:
        return bytes(_BYTES[c] for c in token) if all(c in _BYTES for c in token) else token.encode()
    if re.fullmatch(r"<0x[0-9A-F]{2}>", token):
        return bytes([int(token[3:5], 16)])
    return token.replace("▁", " ").encode()
