"""Design rule 1: two prompts, one body."""

from array import array
from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import cached_property
from string import ascii_letters

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from router.prefix import Bridge, MappedIds, Prefix, SameIds, ThroughText, bridge
from router.vocabulary import Vocabulary


@dataclass(frozen=True)
class Letters:
    """A vocabulary of single characters: IDs count up from `first` in the order of `alphabet`."""

    alphabet: str
    roles: dict[str, int]
    named: dict[str, int] = field(default_factory=dict)
    first: int = 0

    @cached_property
    def ids(self) -> dict[str, int]:
        return {c: self.first + n for n, c in enumerate(self.alphabet)} | self.named

    def encode(self, text: str) -> list[int]:
        return [self.ids[c] for c in text]

    def text(self, ids: Iterable[int]) -> str:
        letters = {i: c for c, i in self.ids.items() if c not in self.named}
        return "".join(letters.get(i, "") for i in ids)


COMMON = "".join(chr(c) for c in range(0x4E00, 0x4E00 + 900)) + "abcxyz<>/think"
SMALL = Letters(
    COMMON,
    {"end": 1001, "open": 1002, "close": 1003},
    {"<|im_end|>": 1001, "<think>": 1002, "</think>": 1003, "<tool>": 1004},
)
LARGE = Letters(
    COMMON,
    {"end": 1000, "open": 1010, "close": 1011},
    {"<|eos|>": 1000, "<think>": 1010, "</think>": 1011, "<|User|>": 1001, "<|pad|>": 1002, "<|extra|>": 1300},
)
"""Laid out as Qwen3 and DeepSeek-R1-Distill-Qwen are: LARGE shares SMALL's words, gives other IDs to the think tags,
uses some of SMALL's special IDs for something else, and is larger."""
MAPPED = bridge(SMALL, LARGE)
STRANGER = Letters("".join(reversed(COMMON)), {"end": 5000, "open": 5001, "close": 5002}, first=2000)


def carry(through: Bridge, ids: Iterable[int], to: str) -> list[int]:
    return list(through.carry(array("i", ids), to))


def test_one_vocabulary_is_handed_over_as_ids() -> None:
    same = bridge(SMALL, Letters(SMALL.alphabet, SMALL.roles, SMALL.named))
    assert same == SameIds()
    assert same.handover == "ids"
    assert carry(same, [1, 2, 1003], "large") == [1, 2, 1003]


def test_one_vocabulary_with_other_parts_is_mapped() -> None:
    """Two fine-tunes of one base that end their turns differently."""
    other_end = Letters(SMALL.alphabet, SMALL.roles | {"end": 1004}, SMALL.named)
    mapped = bridge(SMALL, other_end)
    assert mapped.handover == "mapped"
    assert carry(mapped, [1001], "large") == [1004]


def test_shared_ids_are_handed_over_and_think_tags_are_mapped() -> None:
    mapped = bridge(SMALL, LARGE)
    assert isinstance(mapped, MappedIds)
    assert mapped.handover == "mapped"
    assert carry(mapped, [1002, 5, 6, 1003, 7, 1001], "large") == [1010, 5, 6, 1011, 7, 1000]
    assert carry(mapped, [1010, 5, 6, 1011, 7, 1000], "small") == [1002, 5, 6, 1003, 7, 1001]


shared_ids = st.lists(st.integers(0, len(COMMON) - 1) | st.sampled_from([1001, 1002, 1003]), max_size=40)


@given(ids=shared_ids)
@settings(deadline=None, max_examples=60)
def test_there_and_back_is_where_it_was(ids: list[int]) -> None:
    assert carry(MAPPED, carry(MAPPED, ids, "large"), "small") == ids


def test_a_token_of_one_vocabulary_alone_is_spelt_out_in_the_other() -> None:
    spelling = Letters(COMMON, SMALL.roles, {**SMALL.named, "abc": 1005})
    object.__setattr__(spelling, "text", lambda ids: "".join("abc" if i == 1005 else "" for i in ids))
    assert carry(bridge(spelling, LARGE), [3, 1005, 4], "large") == [3, *LARGE.encode("abc"), 4]


def test_no_id_means_something_else_on_the_other_side() -> None:
    """IDs of tokens without a counterpart are invisible special ones: they vanish rather than become strangers."""
    mapped = bridge(SMALL, LARGE)
    assert carry(mapped, [1004], "large") == []
    assert carry(mapped, [1300, 1001, 1002], "small") == []


def test_strangers_are_handed_over_as_text() -> None:
    through = bridge(SMALL, STRANGER)
    assert isinstance(through, ThroughText)
    assert through.handover == "text"
    ids = [1002, *SMALL.encode("abc"), 1003, *SMALL.encode("xyz"), 1001]
    assert carry(through, ids, "large") == [5001, *STRANGER.encode("abc"), 5002, *STRANGER.encode("xyz"), 5000]
    assert carry(through, carry(through, ids, "large"), "small") == ids


def test_a_part_that_the_other_does_not_play_is_dropped_from_the_text() -> None:
    through = bridge(SMALL, Letters(STRANGER.alphabet, {"end": 5000}, first=2000))
    assert carry(through, [*SMALL.encode("a"), 1003, *SMALL.encode("b")], "large") == STRANGER.encode("ab")


def _saved(folder: str, merges: list[tuple[str, str]], added: list[str], *, backwards: bool) -> Vocabulary:
    letters = sorted(pre_tokenizers.ByteLevel.alphabet(), reverse=backwards)
    pieces = [*letters, *("".join(pair) for pair in merges)]
    tokenizer = Tokenizer(models.BPE({piece: i for i, piece in enumerate(pieces)}, merges))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_tokens([AddedToken(token, special=token.startswith("<|"), normalized=False) for token in added])
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<|end|>")
    fast.chat_template = "{{ messages[0].content }}<think>"
    fast.save_pretrained(folder)
    return Vocabulary.load(folder)


@pytest.fixture(scope="module")
def real(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Vocabulary]:
    merges = [("t", "h"), ("th", "e"), ("Ċ", "Ċ"), *((first, c) for first in "xyz" for c in ascii_letters)]

    def folder() -> str:
        return str(tmp_path_factory.mktemp("model"))

    return {
        "qwen": _saved(folder(), merges, ["<|end|>", "<think>", "</think>"], backwards=False),
        "deepseek": _saved(
            folder(), merges, ["</think>", "<|pad|>", "<think>", "<|user|>", "<|end|>"], backwards=False
        ),
        "other": _saved(folder(), [("a", "n"), ("i", "s")], ["<|end|>", "<think>", "</think>"], backwards=True),
    }


def test_real_tokenizers_that_differ_in_their_tags_are_mapped(real: dict[str, Vocabulary]) -> None:
    qwen, deepseek = real["qwen"], real["deepseek"]
    assert len(qwen.ids) != len(deepseek.ids)
    mapped = bridge(qwen, deepseek)
    assert mapped.handover == "mapped"
    body = [*qwen.encode("the end\n\n"), qwen.roles["close"], *qwen.encode("the"), qwen.roles["end"]]
    there = carry(mapped, body, "large")
    expected = [*deepseek.encode("the end\n\n"), deepseek.roles["close"], *deepseek.encode("the")]
    assert there == [*expected, deepseek.roles["end"]]
    assert carry(mapped, there, "small") == body


@given(thought=st.text(st.characters(exclude_categories=["Cs"])), answer=st.text("the \n🙂ß"))
@settings(deadline=None, max_examples=60)
def test_real_strangers_keep_every_word(real: dict[str, Vocabulary], thought: str, answer: str) -> None:
    qwen, other = real["qwen"], real["other"]
    through = bridge(qwen, other)
    assert through.handover == "text"
    body = [*qwen.encode(thought), qwen.roles["close"], *qwen.encode(answer), qwen.roles["end"]]
    there = carry(through, body, "large")
    close = there.index(other.roles["close"])
    assert other.text(there[:close]) == thought
    assert other.text(there[close + 1 : -1]) == answer
    assert there[-1] == other.roles["end"]
    assert there.count(other.roles["close"]) == 1


def test_a_character_that_straddles_two_hops_survives_the_handover_as_text(real: dict[str, Vocabulary]) -> None:
    qwen, other = real["qwen"], real["other"]
    squid = qwen.encode("🦑")
    prefix = Prefix({"small": [1], "large": [1]}, bridge(qwen, other))
    prefix.commit("small", array("i", squid[:2]))
    prefix.commit("small", array("i", squid[2:]))
    assert other.text(prefix.ids("large")[1:]) == "🦑"


commits = st.lists(
    st.tuples(st.sampled_from(["small", "large", "insert"]), st.lists(st.integers(0, 913), max_size=5)), max_size=12
)


@given(commits=commits, looks=st.lists(st.booleans(), min_size=12, max_size=12))
@settings(deadline=None, max_examples=60)
def test_both_read_the_same_body_whoever_writes(commits: list, looks: list[bool]) -> None:
    prefix = Prefix({"small": [1, 1002], "large": [2, 3, 1010]}, MAPPED)
    body: list[int] = []
    for (writer, ids), look in zip(commits, looks, strict=False):
        if writer == "insert":
            prefix.insert({"small": [1003, 7], "large": [1011, 7]})
            body += [1003, 7]
        else:
            prefix.commit(writer, array("i", ids))
            body += ids
        if look:
            prefix.ids("large")
    in_large = [1011 if i == 1003 else i for i in body]
    assert list(prefix.ids("small")) == [1, 1002, *body]
    assert list(prefix.ids("large")) == [2, 3, 1010, *in_large]
    assert prefix.prompt_tokens == {"small": 2, "large": 3}


def test_what_a_model_wrote_is_never_read_back_through_text() -> None:
    """Design rule 3: only the reader's view is re-encoded."""
    prefix = Prefix({"small": [0], "large": [2000]}, bridge(SMALL, STRANGER))
    prefix.commit("small", array("i", SMALL.encode("abc")))
    prefix.commit("large", array("i", STRANGER.encode("x")))
    prefix.insert({"small": [1003], "large": [5002]})
    assert list(prefix.ids("small")) == [0, *SMALL.encode("abcx"), 1003]
    assert list(prefix.ids("large")) == [2000, *STRANGER.encode("abcx"), 5002]


def test_a_request_may_use_one_model_alone() -> None:
    prefix = Prefix({"large": [9]}, bridge(SMALL, LARGE))
    prefix.commit("large", array("i", [1, 2]))
    prefix.insert({"large": [1011]})
    assert list(prefix.ids("large")) == [9, 1, 2, 1011]
    assert prefix.prompt_tokens == {"large": 1}
