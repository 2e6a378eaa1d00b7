"""Train the embedded pair from a seed.

    python -m deployments.pocket.train --model both

writes deployments/pocket/models/small and /large: ordinary Hugging Face folders of the Qwen3 architecture.
The large model is deep and narrow, which is slow to train, so it grows out of the small one: blocks that begin as
the identity (their output projections are zero) are put between the old ones, two first, to learn the rare prices,
then the others, and training goes on (progressive stacking, block expansion). A stage is bounded in tokens, never
in time, so that a seed means the same training on a machine of any speed. What has been learnt so far is saved every
few minutes.
"""

from __future__ import annotations

import argparse
import functools
import itertools
import math
import random
import re
import shutil
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import GenerationConfig, PreTrainedTokenizerBase, PreTrainedTokenizerFast, Qwen3Config

from deployments.pocket import tokenizer as pocket_tokenizer
from deployments.pocket.problems import CATALOGUE, DELIMITER, PRICES, Item, Problem, Reader, exercises, generate
from deployments.pocket.transformer import EPSILON, ROPE_THETA, Shape, Transformer

MODELS = Path(__file__).parent / "models"
IGNORED = -100
FRESH = -200
SAVE_EVERY = 100
SHEET = 24
BATCH_TOKENS = 3072
CHUNK = 512


@dataclass(frozen=True)
class Stage:
    """A stretch of training at one depth, on one mixture.

    `tokens` counts padding; `rate` is Muon's at its peak, which falls to `final` of it. `common` is the share of
    look-ups that are of common items, `sheets` the number of sheets of exercises per problem, `long` the share of
    problems of four lines and more: in short ones there is little to mistake for the line that comes next.
    """

    layers: int
    tokens: int
    rate: float
    final: float
    common: float
    sheets: float
    long: float


@dataclass(frozen=True)
class Recipe:
    """All that makes a model, its seed excepted. `start` names the model it grows out of, if any."""

    reader: Reader
    shape: Shape
    stages: tuple[Stage, ...]
    start: str | None = None


RECIPES = {
    "small": Recipe(
        reader="small",
        shape=Shape(layers=3),
        stages=(
            Stage(layers=3, tokens=2_000_000, rate=0.02, final=0.7, common=0.6, sheets=0.4, long=0.6),
            Stage(layers=3, tokens=8_000_000, rate=0.014, final=0.0, common=0.6, sheets=0.2, long=0.5),
            Stage(layers=3, tokens=3_000_000, rate=0.010, final=0.0, common=0.4, sheets=0.15, long=0.3),
        ),
    ),
    "large": Recipe(
        reader="large",
        shape=Shape(layers=32),
        stages=(
            Stage(layers=5, tokens=4_000_000, rate=0.014, final=0.0, common=0.15, sheets=0.7, long=0.4),
            Stage(layers=32, tokens=40_000, rate=0.0005, final=0.0, common=0.2, sheets=0.3, long=0.3),
        ),
        start="small",
    ),
}


def next_token_loss(model: Transformer, prices: Tensor, ids: Tensor, labels: Tensor) -> Tensor:
    """Mean cross-entropy in nats. Only labelled positions meet the vocabulary, which costs as much as a layer.

    A price drawn afresh is learnt as what it is, even over `prices` (token IDs): what its samples would teach on
    average, without their noise.
    """
    wanted = labels != IGNORED
    logits, labels = model(ids)[wanted] @ model.embed_tokens.weight.T, labels[wanted]
    fresh = labels == FRESH
    known = F.cross_entropy(logits[~fresh], labels[~fresh], reduction="sum")
    even = (logits[fresh].logsumexp(-1) - logits[fresh][:, prices].mean(-1)).sum()
    return (known + even) / len(labels)


def grown(model: Transformer, shape: Shape, layers: int, vocabulary: int) -> Transformer:
    """The same function with more layers: identity blocks spread between the trained ones."""
    deeper = Transformer(shape, layers, vocabulary)
    deeper.embed_tokens.load_state_dict(model.embed_tokens.state_dict())
    deeper.norm.load_state_dict(model.norm.state_dict())
    old = len(model.layers)
    for index, block in enumerate(model.layers):
        place = (index + 1) * layers // old - 1
        deeper.layers[place].load_state_dict(block.state_dict())
    return deeper


def rendered(tokenizer: PreTrainedTokenizerBase, problem: Problem, system: str | None) -> tuple[str, str]:
    """Prompt and completion as text, through the chat template that serving uses."""
    messages = problem.messages
    if system:
        messages = [{"role": "system", "content": system}, *messages]
    prompt = str(tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True))
    return prompt, f"{problem.completion}{tokenizer.eos_token}"


def labelled(problem: Problem, completion: list[int], delimiter: int) -> list[int]:
    """The completion as labels, with prices drawn afresh marked as such."""
    starts = [0] + [place + 1 for place, token in enumerate(completion) if token == delimiter]
    labels = list(completion)
    for start, step in zip(starts, problem.steps, strict=False):
        found = re.search(r"^\d+ coins for one (\w+) (\w+)", step)
        if found and CATALOGUE.price(Item(*found.groups())) is None:
            labels[start] = FRESH
    return labels


def examples(
    tokenizer: PreTrainedTokenizerFast, reader: Reader, stage: Stage, seed: int
) -> Iterator[tuple[list[int], list[int]]]:
    """Token IDs and labels of whole chats, without end: problems, and sheets of exercises in between."""
    encode = functools.partial(tokenizer.backend_tokenizer.encode_batch_fast, add_special_tokens=False)
    opening = encode(["<|im_start|>user\nExercises<|im_end|>\n<|im_start|>assistant\n<think>\n"])[0].ids
    delimiter = encode([f".{DELIMITER}"])[0].ids[0]
    for number in itertools.count():
        stream = seed * 100_000 + number
        draw = functools.partial(generate, stream, split="train", reader=reader, common_share=stage.common)
        problems = [*draw(int(CHUNK * (1 - stage.long)), two_turns=0.08), *draw(int(CHUNK * stage.long), min_lines=4)]
        texts = []
        for index, problem in enumerate(problems):
            system = pocket_tokenizer.SYSTEM_PROMPTS[index // 12 % 3] if index % 12 == 0 else None
            texts.append(rendered(tokenizer, problem, system))
        prompts, completions = encode([prompt for prompt, _ in texts]), encode([text for _, text in texts])
        for problem, prompt, completion in zip(problems, prompts, completions, strict=True):
            labels = labelled(problem, completion.ids, delimiter)
            yield prompt.ids + completion.ids, [IGNORED] * len(prompt.ids) + labels
        rng = random.Random(f"exercises/{reader}/{stream}")
        for _ in range(int(CHUNK * stage.sheets)):
            lines = list(exercises(rng, SHEET, reader, stage.common))
            asks = encode([line + DELIMITER for line, _, _ in lines])
            results = encode([f"{result}.{DELIMITER}" for _, result, _ in lines])
            ids, labels = list(opening), [IGNORED] * len(opening)
            for (_, _, fresh), ask, result in zip(lines, asks, results, strict=True):
                ids += ask.ids + result.ids
                labels += [IGNORED] * len(ask.ids) + [FRESH if fresh else result.ids[0], IGNORED]
            yield ids, labels


def batches(
    source: Iterator[tuple[list[int], list[int]]], batch_tokens: int, padding: int, seed: int
) -> Iterator[tuple[Tensor, Tensor]]:
    """Inputs and labels, batch x length, of chats of about the same length."""
    generator = torch.Generator().manual_seed(seed)
    while True:
        pool = sorted(itertools.islice(source, 1024), key=lambda example: len(example[0]))
        groups: list[list[tuple[list[int], list[int]]]] = [[]]
        for example in pool:
            if (len(groups[-1]) + 1) * len(example[0]) > batch_tokens and groups[-1]:
                groups.append([])
            groups[-1].append(example)
        for place in torch.randperm(len(groups), generator=generator).tolist():
            group = groups[place]
            length = len(group[-1][0])
            ids = torch.full((len(group), length), padding)
            labels = torch.full((len(group), length), IGNORED)
            for row, (tokens, wanted) in enumerate(group):
                ids[row, : len(tokens)] = torch.tensor(tokens)
                labels[row, : len(wanted)] = torch.tensor(wanted)
            yield ids[:, :-1], labels[:, 1:]


def optimizers(model: nn.Module, rate: float) -> list[torch.optim.Optimizer]:
    """Muon for the matrices of the layers (it learns rare facts in far fewer steps), AdamW for the rest."""
    matrices = [p for name, p in model.named_parameters() if "layers" in name.split(".") and p.dim() == 2]
    rest = [p for p in model.parameters() if not any(p is m for m in matrices)]
    return [
        torch.optim.Muon(matrices, lr=rate, weight_decay=0.0, momentum=0.95),
        torch.optim.AdamW(rest, lr=rate / 4, betas=(0.9, 0.98), weight_decay=0.0),
    ]


def schedule(stage: Stage, done: float) -> float:
    """Factor on the peak rate when a share `done` of the stage is behind: short warm-up, then cosine."""
    if done < 0.02:
        return done / 0.02 + 1e-3
    return stage.final + (1 - stage.final) * 0.5 * (1 + math.cos(math.pi * min(1.0, done)))


def run_stage(
    model: nn.Module,
    loss_of: Callable[[Tensor, Tensor], Tensor],
    stage: Stage,
    data: Iterator[tuple[Tensor, Tensor]],
    device: torch.device,
    name: str,
    save_so_far: Callable[[], None],
) -> None:
    steppers = optimizers(model, stage.rate)
    peaks = [[group["lr"] for group in stepper.param_groups] for stepper in steppers]
    began, seen, step, smoothed = time.monotonic(), 0, 0, None
    while seen < stage.tokens:
        done = seen / stage.tokens
        ids, labels = (tensor.to(device) for tensor in next(data))
        for stepper, rates in zip(steppers, peaks, strict=True):
            for group, rate in zip(stepper.param_groups, rates, strict=True):
                group["lr"] = rate * schedule(stage, done)
        loss = loss_of(ids, labels)
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for stepper in steppers:
            stepper.step()
            stepper.zero_grad(set_to_none=True)
        seen, step = seen + ids.numel(), step + 1
        smoothed = loss.item() if smoothed is None else 0.98 * smoothed + 0.02 * loss.item()
        if step % 20 == 0:
            progress(name, done, step, seen, smoothed, time.monotonic() - began)
        if step % SAVE_EVERY == 0:
            save_so_far()
    progress(name, 1.0, step, seen, smoothed or 0.0, time.monotonic() - began, end="\n")


def progress(name: str, done: float, step: int, tokens: int, loss: float, elapsed: float, end: str = "") -> None:
    bar = "#" * int(24 * done)
    left = elapsed / done - elapsed if done else 0.0
    line = (
        f"{name} [{bar:<24}] {done:6.1%}  step {step}  {tokens / 1e6:.2f} M tokens  loss {loss:.4f}"
        f"  {tokens / elapsed:,.0f} tok/s  {elapsed / 60:.1f} min, {left / 60:.1f} left"
    )
    if sys.stderr.isatty():
        print(f"\r{line}", end=end, file=sys.stderr, flush=True)
    elif step % 200 == 0 or end:
        print(line, file=sys.stderr, flush=True)


@contextmanager
def replacing(folder: Path) -> Iterator[Path]:
    """An empty folder that takes this one's place when the block ends: it appears whole or not at all."""
    new = folder.with_name(folder.name + ".new")
    shutil.rmtree(new, ignore_errors=True)
    new.mkdir(parents=True)
    yield new
    shutil.rmtree(folder, ignore_errors=True)
    new.rename(folder)


def save(model: Transformer, shape: Shape, folder: Path) -> None:
    """Write an ordinary model folder."""
    with replacing(folder) as new:
        tokenizer = pocket_tokenizer.save(new)
        vocabulary = model.embed_tokens.num_embeddings
        config = Qwen3Config(
            architectures=["Qwen3ForCausalLM"],
            vocab_size=vocabulary,
            hidden_size=shape.hidden,
            intermediate_size=shape.intermediate,
            num_hidden_layers=len(model.layers),
            num_attention_heads=shape.heads,
            num_key_value_heads=shape.kv_heads,
            head_dim=shape.head_dim,
            max_position_embeddings=pocket_tokenizer.CONTEXT,
            rms_norm_eps=EPSILON,
            tie_word_embeddings=True,
            rope_parameters={"rope_type": "default", "rope_theta": ROPE_THETA},
            bos_token_id=None,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
            dtype="bfloat16",
        )
        config.save_pretrained(new)
        GenerationConfig(
            do_sample=False, eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id
        ).save_pretrained(new)
        weights = {f"model.{name}": tensor.detach().cpu().bfloat16() for name, tensor in model.state_dict().items()}
        save_file(weights, new / "model.safetensors", metadata={"format": "pt"})


def load(model: Transformer, folder: Path) -> None:
    """Take the weights of a saved model."""
    saved = load_file(folder / "model.safetensors")
    model.load_state_dict({key.removeprefix("model."): tensor.float() for key, tensor in saved.items()})


def train(name: str, out: Path, seed: int, device: torch.device, skip: int = 0) -> None:
    """Train one model into `out/name`. `skip` stages are taken from what an earlier training saved there."""
    recipe = RECIPES[name]
    torch.manual_seed(seed)
    tokenizer = pocket_tokenizer.build()
    vocabulary = -(-len(tokenizer) // 64) * 64
    before, folder = recipe.stages[max(skip, 1) - 1], out / name
    if recipe.start and not skip:
        before, folder = RECIPES[recipe.start].stages[-1], out / recipe.start
    model = Transformer(recipe.shape, before.layers, vocabulary).to(device)
    if recipe.start or skip:
        load(model, folder)
    prices = torch.tensor(tokenizer.convert_tokens_to_ids([str(price) for price in PRICES]), device=device)
    for number, stage in enumerate(recipe.stages):
        if number < skip:
            continue
        if stage.layers != len(model.layers):
            model = grown(model, recipe.shape, stage.layers, vocabulary).to(device)
        source = examples(tokenizer, recipe.reader, stage, seed * 100 + number)
        data = batches(source, BATCH_TOKENS, tokenizer.pad_token_id, seed)
        save_so_far = functools.partial(save, model, recipe.shape, out / name)
        loss_of = functools.partial(next_token_loss, model, prices)
        run_stage(model, loss_of, stage, data, device, f"{name}, {stage.layers} layers", save_so_far)
        save_so_far()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", choices=["small", "large", "both"], default="both")
    parser.add_argument("--out", type=Path, default=MODELS, help="folder of the two model folders")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, ...")
    parser.add_argument("--threads", type=int, default=None, help="CPU threads (default: torch's choice)")
    parser.add_argument("--skip", type=int, default=0, help="stages to take from the model folder in --out")
    options = parser.parse_args()
    if options.threads:
        torch.set_num_threads(options.threads)
    available = "cuda" if torch.cuda.is_available() else "cpu"
    device = torch.device(available if options.device == "auto" else options.device)
    for name in RECIPES if options.model == "both" else (options.model,):
        train(name, options.out, options.seed, device, options.skip)


if __name__ == "__main__":
    main()
