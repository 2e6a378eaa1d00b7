"""What a client reads of a request as it is written: text, and the steps in it."""

from __future__ import annotations

import codecs
from array import array
from collections.abc import Mapping

from router.request import Event, Model, StepWritten, Text, Voice
from router.transcript import Passage, Transcript
from router.vocabulary import Vocabulary


class Reader:
    """Turns passages into what the client reads: text without halves of characters, and finished steps."""

    def __init__(self, page: Transcript, vocabularies: Mapping[Model, Vocabulary]) -> None:
        self._page, self._vocabularies = page, vocabularies
        self._utf8 = codecs.getincrementaldecoder("utf-8")(errors="replace")
        self._step_utf8 = codecs.getincrementaldecoder("utf-8")(errors="replace")
        self._step = array("i")
        self._step_begun: tuple[Model, int, str] = ("small", 0, "")
        self._index = 0
        self._answering = page.task.plain
        self._content_begun = False
        self._shown = self._told = 0
        self._held = ""
        self._stops = page.task.sampling.stop
        self.stopped = False

    def read(self, passage: Passage) -> list[Event]:
        words = self._vocabularies[passage.model]
        # The thinking's last character can't be completed by the answer.
        thought_over = not self._answering and (bool(passage.answer) or not self._page.thinking)
        thought = self._utf8.decode(words.bytes(self._seen(passage.thought, words)), final=thought_over)
        events = self._say(thought)
        events += self._steps(passage, words, thought_over=thought_over)
        self._answering |= thought_over
        events += self._say(self._utf8.decode(words.bytes(passage.answer)))
        return events

    def rest(self) -> list[Event]:
        """What was held back in case a stop string or a character was still to be completed."""
        tail = self._utf8.decode(b"", final=True)
        if not self._answering:
            return self._say(tail)
        text = "" if self.stopped else self._trimmed(self._unstopped(tail) + self._held)
        return [Text("content", text)] if text else []

    def _seen(self, ids: array[int], words: Vocabulary) -> array[int]:
        return ids if self._page.task.plain else array("i", (i for i in ids if i != words.marks.close))

    def _steps(self, passage: Passage, words: Vocabulary, *, thought_over: bool) -> list[Event]:
        writer, begun, text = self._step_begun
        if writer != passage.model:
            # The tokens of a step that both models write are each in their writer's vocabulary.
            begun, text = begun + len(self._step), text + self._step_text(self._vocabularies[writer], self._step)
            self._step = array("i")
        self._step.extend(passage.thought)
        events: list[Event] = []
        for n, step in enumerate(passage.steps, start=1):
            own = step.tokens - begun
            ids, self._step = self._step[:own], self._step[own:]
            last = thought_over and n == len(passage.steps)
            text += self._step_text(words, ids, final=last)
            if self.stopped:
                text = text[: max(0, self._shown - self._told)]
            self._told += len(text)
            events.append(
                StepWritten(
                    index=self._index,
                    model="large" if 2 * step.large_tokens > step.tokens else "small",
                    entropy=step.entropy,
                    tokens=step.tokens,
                    cached_tokens=passage.cached_tokens,
                    prefix_tokens=passage.prefix_tokens,
                    duration_ms=step.duration_ms,
                    text=text,
                    large_tokens=step.large_tokens,
                )
            )
            self._index += 1
            begun, text = 0, ""
        self._step_begun = (passage.model, begun, text)
        return events

    def _step_text(self, words: Vocabulary, ids: array[int], *, final: bool = False) -> str:
        return self._step_utf8.decode(words.bytes(self._seen(ids, words)), final=final)

    def _say(self, text: str) -> list[Event]:
        voice: Voice = "content" if self._answering else "reasoning"
        if self._answering:
            text = self._trimmed(self._unstopped(text))
        self._shown += len(text)
        return [Text(voice, text)] if text else []

    def _trimmed(self, text: str) -> str:
        if not self._content_begun and not self._page.task.plain:
            text = text.lstrip("\n")
        self._content_begun |= bool(text)
        return text

    def _unstopped(self, text: str) -> str:
        """What of `held` and `text` can be shown; the rest might yet become a stop string."""
        if not self._stops:
            return text
        if self.stopped:
            return ""
        text, self._held = self._held + text, ""
        # What is not shown before the answer's first word can't be what the client meant.
        unshown = 0 if self._content_begun or self._page.task.plain else len(text) - len(text.lstrip("\n"))
        found = [at for stop in self._stops if (at := text.find(stop, max(0, unshown - len(stop) + 1))) >= 0]
        if found:
            self.stopped = True
            return text[: min(found)]
        keep = max(_overlap(text, stop) for stop in self._stops)
        cut = len(text) - keep
        text, self._held = text[:cut], text[cut:]
        return text


def _overlap(text: str, stop: str) -> int:
    """Length of the longest end of `text` that could be the beginning of `stop`."""
    return next((n for n in range(min(len(stop) - 1, len(text)), 0, -1) if text.endswith(stop[:n])), 0)
