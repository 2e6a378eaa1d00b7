"""Train heads that draft for the small model.

    python -m deployments.pocket.heads

writes deployments/pocket/models/small-heads, which vLLM loads as Medusa heads (https://arxiv.org/abs/2401.10774): each
guesses, from the hidden state out of which the model says the next token, one that comes after it. The model stays as
it is and has the last word on every guess, so heads that know little cost time and nothing else.
"""

from __future__ import annotations

import argparse
import functools
import json
from collections.abc import Iterable
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import PreTrainedTokenizerFast

from deployments.pocket import tokenizer as pocket_tokenizer
from deployments.pocket.problems import Problem, generate
from deployments.pocket.train import (
    BATCH_TOKENS,
    IGNORED,
    MODELS,
    RECIPES,
    Stage,
    batches,
    examples,
    load,
    rendered,
    replacing,
    run_stage,
)
from deployments.pocket.transformer import Transformer

HEADS = 5
DEPTH = 2
STAGE = Stage(layers=DEPTH, tokens=8_000_000, rate=0.01, final=0.0, common=0.4, sheets=0.0, long=0.5)


class Residual(nn.Module):
    def __init__(self, hidden: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(hidden, hidden, bias=False) for _ in range(DEPTH))

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = x + F.silu(layer(x))
        return x


class Heads(nn.Module):
    """The first guesses the token after the next one, and so on. Each has a vocabulary of its own, which begins as the
    model's. Parameters carry vLLM's names."""

    def __init__(self, embedding: Tensor) -> None:
        super().__init__()
        vocabulary, hidden = embedding.shape
        self.blocks = nn.ModuleList(Residual(hidden) for _ in range(HEADS))
        self.lm_heads = nn.ModuleList(nn.Linear(hidden, vocabulary, bias=False) for _ in range(HEADS))
        for weight in self.lm_heads.parameters():
            weight.data.copy_(embedding)

    def forward(self, head: int, hidden: Tensor) -> Tensor:
        """hidden: of a position, n x hidden. What this head makes of it: logits, n x vocabulary."""
        return self.lm_heads[head](self.blocks[head](hidden))

    def loss(self, model: Transformer, ids: Tensor, labels: Tensor) -> Tensor:
        """Sum over the heads of the mean cross-entropy in nats. ids, labels: batch x length."""
        with torch.no_grad():
            hidden = model(ids)
        total = hidden.new_zeros(())
        for head in range(HEADS):
            ahead = head + 1
            wanted = labels[:, ahead:] != IGNORED
            total = total + F.cross_entropy(self(head, hidden[:, :-ahead][wanted]), labels[:, ahead:][wanted])
        return total


@torch.no_grad()
def tokens_an_iteration(
    heads: Heads, model: Transformer, tokenizer: PreTrainedTokenizerFast, problems: Iterable[Problem]
) -> float:
    """How many tokens come out of one iteration of the model: one, and the guesses that it would have made itself, up
    to the first that it would not. Seen along the right reasoning."""
    written = iterations = 0
    for problem in problems:
        prompt, completion = (
            tokenizer.encode(text, add_special_tokens=False) for text in rendered(tokenizer, problem, None)
        )
        hidden = model(torch.tensor([prompt + completion]))[0, len(prompt) - 1 : -1]
        said = (hidden @ model.embed_tokens.weight.T).argmax(-1).tolist()
        guesses = torch.stack([heads(head, hidden).argmax(-1) for head in range(HEADS)], dim=1).tolist()
        place = 0
        while place < len(said):
            agreed = 0
            for guess, token in zip(guesses[place], said[place + 1 :], strict=False):
                if guess != token:
                    break
                agreed += 1
            place += 1 + agreed
            iterations += 1
        written += place
    return written / iterations


def read_small(out: Path) -> Transformer:
    """The trained small model, frozen."""
    recipe = RECIPES["small"]
    vocabulary = json.loads((out / "small" / "config.json").read_text())["vocab_size"]
    model = Transformer(recipe.shape, recipe.stages[-1].layers, vocabulary)
    load(model, out / "small")
    return model.requires_grad_(False)


def save(heads: Heads, folder: Path) -> None:
    """Write a folder as vLLM reads it."""
    weights = {name: tensor.bfloat16() for name, tensor in heads.state_dict().items()}
    vocabulary, hidden = weights["lm_heads.0.weight"].shape
    config = {
        "architectures": ["MedusaModel"],
        "model_type": "medusa",
        "num_heads": HEADS,
        "num_hidden_layers": DEPTH,
        "hidden_size": hidden,
        "vocab_size": vocabulary,
        "truncated_vocab_size": vocabulary,
        "max_position_embeddings": pocket_tokenizer.CONTEXT,
        "dtype": "bfloat16",
    }
    with replacing(folder) as new:
        (new / "config.json").write_text(json.dumps(config, indent=2) + "\n")
        save_file(weights, new / "model.safetensors", metadata={"format": "pt"})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=MODELS, help="folder of the model folders, `small` among them")
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    torch.manual_seed(options.seed)
    tokenizer = pocket_tokenizer.build()
    model = read_small(options.out)
    heads = Heads(model.embed_tokens.weight)
    # What the small model goes on from is also the large one's steps, with prices that it would not have known.
    source = examples(tokenizer, "large", STAGE, options.seed * 100)
    save_so_far = functools.partial(save, heads, options.out / "small-heads")
    run_stage(
        heads,
        functools.partial(heads.loss, model),
        STAGE,
        batches(source, BATCH_TOKENS, tokenizer.pad_token_id, options.seed),
        torch.device("cpu"),
        f"{HEADS} heads",
        save_so_far,
    )
    save_so_far()
    problems = generate(options.seed, 200, "tune", reader="large")
    print(f"{tokens_an_iteration(heads, model, tokenizer, problems):.2f} tokens an iteration")


if __name__ == "__main__":
    main()
