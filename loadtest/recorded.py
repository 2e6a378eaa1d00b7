"""Models of real shapes that write what was recorded: for speed on GPUs, where it depends on a model's shape and on
which steps go to the large one, not on what its weights say.

    python -m loadtest.recorded /tmp/replay --tokenizer ~/.cache/glimp-pair/small
    python -m loadtest.versus --profile /tmp/replay/profile.yaml --data /tmp/replay/questions.jsonl --clients 1,8,32

Writes a pair of models without weights, questions for them and a profile. The layers get random weights when an engine
starts, and the two ends of the model a chain of tokens (loadtest/recorded_worker.py): each token names the next, and
so every system that asks gets the same steps. A step is as long as the recorded one; where that went to the large
model its first token is one of eight that are as good as equally likely (2.08 nats), else it is certain; so is each
token that went there by itself, and the small model's likeliest is another than the large one's where that was so. The
first word of a question says which of the recorded requests is replayed; the rest only takes room, and is different in
each.

--around makes requests as long as reasoning is: each goes on with the next recorded one, round and round, and ends
where it is cut (`loadtest.versus --max-tokens`). --paced leaves out what a GPU is needed for: engines of a CPU compute
nothing and wait as long as one H200 takes for such models (loadtest/paced_worker.py), so that all around the forward
passes can be measured without one.

The recording (loadtest/recordings/gsm8k.jsonl): sixteen word problems, answered by Qwen2.5-Coder-0.5B and 1.5B under
`local-pair.yaml`, 4,857 tokens in 109 steps, 23 of them by the large model. The last step of each ends in a number, by
which one sees that a reply came whole.
"""

from __future__ import annotations

import argparse
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import yaml

from loadtest.command import MeasuringError, at_least_one, bare_parser, run
from loadtest.hard_steps import tokenizer_of

RECORDING = Path(__file__).parent / "recordings" / "gsm8k.jsonl"
CHAIN, FORMAT = "chain.json", "recorded"
UNSURE = 8
"""Tokens between which the small model is unsure."""
SHORTEST = 4
"""Tokens of a step at least: one to be unsure of, and what a request ends in."""

QWEN3 = {
    "architectures": ["Qwen3ForCausalLM"],
    "model_type": "qwen3",
    "vocab_size": 151936,
    "head_dim": 128,
    "hidden_act": "silu",
    "rms_norm_eps": 1e-06,
    "rope_theta": 1000000,
    "max_position_embeddings": 40960,
    "attention_bias": False,
    # A matrix of its own for the output, which the smaller ones share with the input: a chain needs two.
    "tie_word_embeddings": False,
    "torch_dtype": "bfloat16",
}
SIZES = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads")
PACE = ("ITERATION_MS", "ITERATION_TOKEN_MS", "ITERATION_CONTEXT_MS")
PACES = {"qwen3-4b": (3.8, 0.017, 0.000037), "qwen3-32b": (19.2, 0.11, 0.000066)}
"""Milliseconds of an iteration, and more for each token read or written and for each that these look back on. The first
two on one H200, each model by itself (docs/benchmarks.md, On a GPU), the last by the bytes of its keys and values (147
and 262 KB) and what of the memory's bandwidth one gets (4 TB/s)."""
SHAPES = {
    "tiny": (256, 512, 2, 4, 2),
    "qwen3-4b": (2560, 9728, 36, 32, 8),
    "qwen3-8b": (4096, 12288, 36, 32, 8),
    "qwen3-14b": (5120, 17408, 40, 40, 8),
    "qwen3-32b": (5120, 25600, 64, 64, 8),
}
REPLAYED = {"load_format": FORMAT, "worker_cls": "loadtest.recorded_worker.Worker"}
PACED = {
    "load_format": "dummy",
    "worker_cls": "loadtest.paced_worker.Worker",
    "enforce_eager": True,
    "block_size": 32,
    # As on GPUs, where vLLM has it so by itself: the worker in the engine's own process (see pocket.yaml), and long
    # prompts read in pieces.
    "distributed_executor_backend": "vllm.v1.executor.uniproc_executor.UniProcExecutor",
    "enable_chunked_prefill": True,
}
ON_CPU = {"VLLM_CPU_KVCACHE_SPACE": "1", "OMP_NUM_THREADS": "1", "VLLM_CPU_OMP_THREADS_BIND": "nobind"}

TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n"
    "{% set first = messages[-1].content.split(' ')[0] %}"
    "{{ first if first in STARTS else STARTS[0] }}{% endif %}"
)


@dataclass(frozen=True, slots=True)
class Step:
    """tokens: its delimiter, or the end of the text, included. hard: the large model's, by its first token. unsure: the
    tokens that are the large model's one by one, by their places from 0. wrong: those of these of which the small model
    would have written another."""

    tokens: int
    hard: bool
    unsure: tuple[int, ...] = ()
    wrong: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class Chain:
    """What is written. starts: the word that a question begins with, by request; answers: the number that the request's
    reply ends in; successors: the tokens that may follow a token, as likely as each other, the first a little more;
    wrong: those that the small model would not put first."""

    starts: tuple[str, ...]
    answers: tuple[int, ...]
    successors: Mapping[int, tuple[int, ...]]
    wrong: frozenset[int] = frozenset()

    @property
    def of_small(self) -> Mapping[int, tuple[int, ...]]:
        """The small model's successors."""
        return {
            token: (*after[1:], after[0]) if after[0] in self.wrong else after
            for token, after in self.successors.items()
        }


@dataclass(frozen=True, slots=True)
class Words:
    """Tokens that stay what they are when a text is taken apart and read again, each used once.

    inner: words after a space; starts: words that begin a line, with their texts; breaks: delimiters; marks: what may
    stand before a number; digits: those of 0 to 9; end: of the text.
    """

    inner: Iterator[int]
    starts: Iterator[tuple[int, str]]
    breaks: Iterator[int]
    marks: Iterator[int]
    digits: Sequence[int]
    end: int

    @classmethod
    def of(cls, tokenizer: Any) -> Words:
        texts = [(token, tokenizer.decode([token])) for token in range(tokenizer.vocab_size)]

        def ids(text: str) -> list[int]:
            return list(tokenizer.encode(text, add_special_tokens=False))

        def alone(pattern: str, before: str, after: str) -> Iterator[tuple[int, str]]:
            """Tokens of such a text that are found again between the others."""
            edges = len(ids(before)), len(ids(after))
            for token, text in texts:
                if re.fullmatch(pattern, text):
                    read = ids(before + text + after)
                    if read[edges[0] : len(read) - edges[1]] == [token]:
                        yield token, text

        return cls(
            inner=(token for token, _ in alone(r" [a-z]{3,}", " word", " word")),
            starts=alone(r"[a-z]{4,}", "\n", " word"),
            breaks=(token for token, _ in alone(r"[!-/:-@[-`{-~]+\n\n", " word", " word")),
            marks=(token for token, _ in alone(r"[=:(]+", " word", "7")),
            digits=[ids(f"={digit}")[-1] for digit in range(10)],
            end=int(tokenizer.eos_token_id),
        )


def read(path: Path) -> list[tuple[Step, ...]]:
    """Recorded requests, one a line, as `loadtest.record` writes them."""
    try:
        lines = [json.loads(line) for line in path.read_text().splitlines() if line.strip()]
        requests = [tuple(_step(*step) for step in line["steps"]) for line in lines]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise MeasuringError(f"{path}: not a recording, which has lines with `steps`: {error}") from None
    if not requests or any(not steps or min(step.tokens for step in steps) < SHORTEST for steps in requests):
        raise MeasuringError(f"{path}: needs requests, each of steps of {SHORTEST} tokens or more")
    return requests


def _step(tokens: int, by_large: bool | Sequence[int], wrong: Sequence[int] = ()) -> Step:
    if isinstance(by_large, bool):
        return Step(int(tokens), by_large)
    unsure = tuple(int(place) for place in by_large)
    if not all(0 <= place < tokens for place in unsure) or not set(wrong) <= set(unsure):
        raise ValueError(f"a step of {tokens} tokens has no places {unsure}, or not {tuple(wrong)} among them")
    return Step(int(tokens), False, unsure, tuple(wrong))


def chained(requests: Sequence[Sequence[Step]], words: Words, *, around: bool = False) -> Chain:
    """Every request's tokens, one after the other. around: each request goes on with the next one, the last with the
    first, and none has an answer."""
    starts: list[str] = []
    edges: list[tuple[int, Sequence[int]]] = []
    successors: dict[int, tuple[int, ...]] = dict.fromkeys(words.digits, (words.end,))
    wrong: set[int] = set()
    try:
        for n, steps in enumerate(requests):
            first, start = next(words.starts)
            starts.append(start)
            endings = [[next(words.breaks)] for _ in steps[1:]]
            endings.append([next(words.breaks)] if around else [next(words.marks), words.digits[n % 10], words.end])
            last: Sequence[int] = (first,)
            for step, ending in zip(steps, endings, strict=True):
                for following, misled in _written(step, ending, words.inner):
                    successors |= dict.fromkeys(last, following)
                    wrong |= {following[0]} if misled else set()
                    last = following
            edges.append((first, last))
    except StopIteration:
        raise MeasuringError("the tokenizer has too few tokens for a recording as long as this") from None
    if around:
        for (_, ends), (first, _) in pairwise([*edges, edges[0]]):
            successors |= dict.fromkeys(ends, successors[first])
    return Chain(tuple(starts), tuple(n % 10 for n in range(len(requests))), successors, frozenset(wrong))


def _written(step: Step, ending: Sequence[int], inner: Iterator[int]) -> list[tuple[tuple[int, ...], bool]]:
    """The step's tokens: of each those that it may be, and whether the small model is misled. An ending is certain."""
    places = step.tokens - len(ending)
    unsure = {0: False} if step.hard else {}
    for recorded in reversed(step.unsure):
        place = recorded
        # One that stands among the ending's, or took this one's place, goes to the next before it that is free.
        while place >= places or place in unsure:
            place -= 1
        unsure[max(place, 0)] = recorded in step.wrong
    written = [
        (tuple([next(inner) for _ in range(UNSURE if place in unsure else 1)]), unsure.get(place, False))
        for place in range(places)
    ]
    return written + [((token,), False) for token in ending]


def questions(chain: Chain, count: int, tokens: int) -> Iterator[dict[str, str]]:
    """So many, about so many tokens long each; no two are the same after the first word."""
    for n in range(count):
        number = n % len(chain.starts)
        filler = " ".join(f"{n}" if i % 8 == 0 else "of" for i in range(max(1, tokens * 5 // 8)))
        yield {"question": f"{chain.starts[number]} {filler}", "answer": f"{chain.answers[number]}"}


def model(folder: Path, tokenizer: Any, shape: str, chain: Chain, successors: Mapping[int, Sequence[int]]) -> None:
    """The folder of a model without weights."""
    tokenizer.chat_template = TEMPLATE.replace("STARTS", json.dumps(chain.starts))
    tokenizer.save_pretrained(folder)
    ends = {"bos_token_id": tokenizer.eos_token_id, "eos_token_id": tokenizer.eos_token_id}
    (folder / "config.json").write_text(
        json.dumps(QWEN3 | dict(zip(SIZES, SHAPES[shape], strict=True)) | ends, indent=1)
    )
    (folder / CHAIN).write_text(json.dumps({str(token): after for token, after in successors.items()}))


def profile(options: argparse.Namespace, gates: Mapping[str, float]) -> dict[str, Any]:
    """Both models on one GPU, or on the CPU."""
    pools = {}
    for name, shape, share, cache in (("small", options.small, 0.2, 12), ("large", options.large, 0.75, 20)):
        pool: dict[str, Any] = {
            "model": str((options.folder / name).resolve()),
            "dtype": "bfloat16",
            "max_model_len": 8192 if options.cpu else 40960,
            "cpus": 0.5,
            "max_ongoing_requests": 64,
            "sampling": {"temperature": 0.0},
        }
        engine: dict[str, Any] = {"max_num_seqs": 64}
        if options.paced or options.cpu:
            pool["sessions"] = 64
        if options.paced:
            pool["engine"] = engine | PACED
            pace = dict(zip(PACE, map("{:f}".format, PACES[shape]), strict=True))
            pool["env"] = ON_CPU | {"VLLM_CPU_KVCACHE_SPACE": "4"} | pace
        elif options.cpu:
            pool["engine"] = engine | REPLAYED | {"enforce_eager": True, "block_size": 32}
            pool["env"] = ON_CPU
        else:
            pool["gpus"] = share
            pool["engine"] = {
                **engine,
                **REPLAYED,
                "kv_cache_memory_bytes": cache << 30,
                "gpu_memory_utilization": share,
                # Whole iterations as CUDA graphs, of vLLM's own kernels: compiled ones would take minutes to start.
                "compilation_config": {"mode": 0, "cudagraph_mode": "FULL"},
            }
        pools[name] = pool
    args = {
        **pools,
        "routing": dict(gates),
        "limits": {"max_tokens": 16384, "max_steps": 1024, "deadline_s": 3600.0},
        "router": {"cpus": 0.5},
    }
    return {
        "applications": [{"name": "glimpse", "route_prefix": "/", "import_path": "deployments.app:build", "args": args}]
    }


def routing(requests: Sequence[Sequence[Step]]) -> dict[str, float]:
    """That of a recording: by tokens where there are tokens that went by themselves, else by steps."""
    by_token = any(step.unsure for steps in requests for step in steps)
    return {"threshold": 3.0, "token_threshold": 1.0} if by_token else {"threshold": 1.0}


def read_options(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    made = bare_parser("loadtest.recorded", __doc__)
    made.add_argument("folder", type=Path, help="where to write models, questions and profile")
    made.add_argument("--tokenizer", required=True, metavar="DIR", help="a model with a vocabulary like Qwen's")
    made.add_argument("--recording", type=Path, default=RECORDING, metavar="FILE", help="(default: %(default)s)")
    made.add_argument("--small", choices=SHAPES, default="qwen3-4b", help="(default: %(default)s)")
    made.add_argument("--large", choices=SHAPES, default="qwen3-32b", help="(default: %(default)s)")
    made.add_argument("--questions", type=at_least_one, default=1024, metavar="N", help="(default: %(default)s)")
    made.add_argument("--prompt-tokens", type=at_least_one, default=512, metavar="N", help="(default: %(default)s)")
    made.add_argument("--around", action="store_true", help="replies that end where they are cut")
    where = made.add_mutually_exclusive_group()
    where.add_argument(
        "--cpu", action="store_true", help="a profile for CPUs; with `--small tiny --large tiny`, a trial"
    )
    where.add_argument("--paced", action="store_true", help=f"waiting in the place of computing; of {', '.join(PACES)}")
    options = made.parse_args(arguments)
    if options.paced and not {options.small, options.large} <= PACES.keys():
        made.error(f"--paced: how long is known of {', '.join(PACES)}")
    return options


def main() -> None:
    options = read_options()
    tokenizer = tokenizer_of(options.tokenizer)
    requests = read(options.recording)
    chain = chained(requests, Words.of(tokenizer), around=options.around)
    for name, shape, after in (("small", options.small, chain.of_small), ("large", options.large, chain.successors)):
        model(options.folder / name, tokenizer, "tiny" if options.paced else shape, chain, after)
    asked = questions(chain, options.questions, options.prompt_tokens)
    (options.folder / "questions.jsonl").write_text("".join(json.dumps(question) + "\n" for question in asked))
    (options.folder / "profile.yaml").write_text(yaml.safe_dump(profile(options, routing(requests)), sort_keys=False))
    print(f"{options.folder}: {options.small}, {options.large}, {len(chain.starts)} requests, profile.yaml")


if __name__ == "__main__":
    run(main)
