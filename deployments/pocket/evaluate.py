"""Judge the embedded pair without serving it.

    python -m deployments.pocket.evaluate --problems 500 --seed 7

Every problem has one right reasoning, so one forward pass over it shows what each model would write greedily
at every position, given the right tokens before. A problem counts as right if no token of its path differs:
a lower bound, as a slip that a later step makes good counts as wrong. What is measured through the served
stack is `loadtest.quality`'s business.
"""

from __future__ import annotations

import argparse
import math
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerBase

from deployments.pocket.problems import DELIMITER, Problem, Split, generate
from deployments.pocket.train import MODELS, rendered

TOP = 20
THRESHOLDS = (0.1, 0.3, 0.5, 1.0, 1.5, 2.0, 2.5)


@dataclass(frozen=True)
class Step:
    """One step of the right path: where it stands in the tokens, and what each model makes of it."""

    tokens: int
    entropy: float
    small_right: bool
    large_right: bool
    answer: bool


@dataclass(frozen=True)
class Routed:
    """What a way of routing comes to: both are shares."""

    accuracy: float
    large_tokens: float


def entropy(logits: Tensor) -> Tensor:
    """Nats, over the renormalised top 20; logits are ... x vocabulary."""
    logprobs = logits.topk(TOP, dim=-1).values.log_softmax(dim=-1)
    return -(logprobs.exp() * logprobs).sum(dim=-1)


def spans(tokenizer: PreTrainedTokenizerBase, problem: Problem) -> tuple[list[int], list[tuple[int, int]]]:
    """Token IDs of prompt and completion, and the (start, end) of every step; the last one is the answer,
    the one before it the end of thinking."""
    prompt, completion = rendered(tokenizer, problem, None)
    ids = tokenizer.encode(prompt, add_special_tokens=False)
    found: list[tuple[int, int]] = []
    start, closed = len(ids), False
    closing = tokenizer.convert_tokens_to_ids("</think>")
    for token in tokenizer.encode(completion, add_special_tokens=False):
        ids.append(token)
        if token == closing or (not closed and DELIMITER in tokenizer.decode([token])):
            found.append((start, len(ids)))
            start, closed = len(ids), token == closing
    return ids, [*found, (start, len(ids))]


@torch.inference_mode()
def judge(folder: Path, problems: list[Problem], batch: int = 25) -> list[list[Step]]:
    """The steps of every problem, by both models in `folder`."""
    tokenizer = AutoTokenizer.from_pretrained(folder / "small")
    pair = [
        AutoModelForCausalLM.from_pretrained(folder / name, dtype=torch.float32).eval() for name in ("small", "large")
    ]
    judged: list[list[Step]] = []
    for first in range(0, len(problems), batch):
        texts = [spans(tokenizer, problem) for problem in problems[first : first + batch]]
        length = max(len(ids) for ids, _ in texts)
        padded = torch.full((len(texts), length), tokenizer.pad_token_id)
        for row, (ids, _) in enumerate(texts):
            padded[row, : len(ids)] = torch.tensor(ids)
        small, large = (model(padded).logits for model in pair)
        sure = entropy(small)
        small_hits, large_hits = (logits[:, :-1].argmax(-1) == padded[:, 1:] for logits in (small, large))
        for row, (_, cut) in enumerate(texts):
            judged.append(
                [
                    Step(
                        tokens=end - start,
                        entropy=sure[row, start - 1].item(),
                        small_right=bool(small_hits[row, start - 1 : end - 1].all()),
                        large_right=bool(large_hits[row, start - 1 : end - 1].all()),
                        answer=(start, end) == cut[-1],
                    )
                    for start, end in cut
                ]
            )
    return judged


def routed(judged: list[list[Step]], threshold: float) -> Routed:
    """By the gate; the large model answers. A threshold below 0 is the large model alone."""
    right = total = by_large = 0
    for steps in judged:
        large = [step.answer or step.entropy > threshold for step in steps]
        right += all(step.large_right if taken else step.small_right for step, taken in zip(steps, large, strict=True))
        total += sum(step.tokens for step in steps)
        by_large += sum(step.tokens for step, taken in zip(steps, large, strict=True) if taken)
    return Routed(right / len(judged), by_large / total)


def at_random(judged: list[list[Step]], share: float) -> Routed:
    """Expected accuracy when every step is escalated with one probability, at the given share of tokens."""
    tokens = sum(step.tokens for steps in judged for step in steps)
    answers = sum(step.tokens for steps in judged for step in steps if step.answer)
    p = max(0.0, (share * tokens - answers) / (tokens - answers))
    right = sum(
        math.prod(
            float(step.large_right) if step.answer else p * step.large_right + (1 - p) * step.small_right
            for step in steps
        )
        for steps in judged
    )
    return Routed(right / len(judged), share)


def auroc(judged: list[list[Step]]) -> float:
    """Of entropy against "the small model's step differs from the right one"; ties count half."""
    steps = [step for problem in judged for step in problem if not step.answer]
    wrong = torch.tensor([step.entropy for step in steps if not step.small_right])
    right = torch.tensor([step.entropy for step in steps if step.small_right])
    if not len(wrong) or not len(right):
        return math.nan
    above = (wrong[:, None] > right[None]).float() + 0.5 * (wrong[:, None] == right[None]).float()
    return above.mean().item()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", type=Path, default=MODELS)
    parser.add_argument("--problems", type=int, default=500)
    parser.add_argument("--seed", type=int, default=7)
    parser.add_argument("--split", choices=["tune", "test"], default="test")
    options = parser.parse_args()
    split: Split = options.split
    judged = judge(options.models, list(generate(options.seed, options.problems, split)))
    steps = [step for problem in judged for step in problem]
    alone = sum(all(step.small_right for step in problem) for problem in judged) / len(judged)
    print(f"{len(judged)} problems, split {split}, seed {options.seed}, {len(steps) / len(judged):.1f} steps each")
    print(f"small alone       {alone:6.1%}")
    print(f"large alone       {routed(judged, -1).accuracy:6.1%}")
    print("threshold  routed  by large  random at that share  sure slips of small")
    for threshold in THRESHOLDS:
        gate = routed(judged, threshold)
        slips = sum(not s.small_right and s.entropy <= threshold for s in steps) / len(steps)
        chance = at_random(judged, gate.large_tokens).accuracy
        print(f"{threshold:9.1f}  {gate.accuracy:6.1%}  {gate.large_tokens:8.1%}  {chance:20.1%}  {slips:.3%} of steps")
    print(f"AUROC {auroc(judged):.4f}")


if __name__ == "__main__":
    main()
