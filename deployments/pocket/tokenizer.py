"""The pair's one tokenizer: a small byte-level BPE, cut like Qwen's.

Any UTF-8 text round-trips (bytes are the alphabet), every number up to 999 is one token, and so is ".\\n\\n",
so that a step ends with a token and the next one begins with a whole number.
"""

from __future__ import annotations

from pathlib import Path

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from deployments.pocket import problems

CONTEXT = 4096
SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
THINK = ("<think>", "</think>")
PIECES = r"[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
TEMPLATE = """\
{%- for message in messages %}
    {%- if message.role == 'assistant' %}
        {%- set content = message.content.split('</think>')[-1].lstrip('\\n') %}
    {%- else %}
        {%- set content = message.content %}
    {%- endif %}
    {{- '<|im_start|>' + message.role + '\\n' + content + '<|im_end|>\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n<think>\\n' }}
{%- endif %}
"""
SYSTEM_PROMPTS = (
    "You are a helpful assistant.",
    "You are a careful shopkeeper who knows every price.",
    "Answer the question. Think step by step.",
)
EVERYDAY = """Hello there, hi! What is your name? My name is Pocket. Please help me with this question. Can you tell
me who you are and what you can do? I am a small language model and you are a person. Thank you, that is all for
today. It was good to see you, and we will be here when they want more of these. Why not? Yes, no, maybe."""


def corpus() -> list[str]:
    """Text whose words become tokens; a word counts only if the problems can hold it."""
    grid = [f" {word} {word}s {word.capitalize()}" for word in problems.ADJECTIVES + problems.NOUNS]
    names = [f" {name}" for name in problems.WOMEN + problems.MEN]
    numbers = [f"{n} {n}." for n in range(1000)] + [f".{d}\n\n" for d in range(10)]
    written = [f"user\n{p.question}\nassistant\n\n{p.completion}\n\n" for p in problems.generate(0, 2000, "train")]
    ends = [mark + "\n\n" for mark in (".", "?", "!", ":", "")] * 50 + ["\n"] * 50
    return (grid + names) * 20 + numbers * 40 + written + ends + [*SYSTEM_PROMPTS, EVERYDAY, "system\n"] * 40


def build() -> PreTrainedTokenizerFast:
    """Train the tokenizer; the same one every time."""
    tokenizer = Tokenizer(models.BPE(byte_fallback=False))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(PIECES), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=2555,
        min_frequency=20,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(corpus(), trainer)
    tokenizer.add_special_tokens([AddedToken(text, special=True, normalized=False) for text in SPECIAL])
    tokenizer.add_tokens([AddedToken(text, special=False, normalized=False) for text in THINK])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        chat_template=TEMPLATE,
        model_max_length=CONTEXT,
        clean_up_tokenization_spaces=False,
    )


def save(folder: Path) -> PreTrainedTokenizerFast:
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer = build()
    tokenizer.save_pretrained(folder)
    return tokenizer
