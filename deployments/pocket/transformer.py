"""Qwen3 without its generality, to be trained; what is saved of it loads as Qwen3 anywhere."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from deployments.pocket import tokenizer as pocket_tokenizer

ROPE_THETA = 10_000.0
EPSILON = 1e-6


@dataclass(frozen=True)
class Shape:
    """Sizes of a transformer; `layers` are the final ones."""

    layers: int
    hidden: int = 128
    intermediate: int = 384
    heads: int = 4
    kv_heads: int = 2
    head_dim: int = 32


class Attention(nn.Module):
    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.shape = shape
        self.q_proj = nn.Linear(shape.hidden, shape.heads * shape.head_dim, bias=False)
        self.k_proj = nn.Linear(shape.hidden, shape.kv_heads * shape.head_dim, bias=False)
        self.v_proj = nn.Linear(shape.hidden, shape.kv_heads * shape.head_dim, bias=False)
        self.o_proj = nn.Linear(shape.heads * shape.head_dim, shape.hidden, bias=False)
        self.q_norm = nn.RMSNorm(shape.head_dim, eps=EPSILON)
        self.k_norm = nn.RMSNorm(shape.head_dim, eps=EPSILON)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        batch, length, _ = x.shape
        s = self.shape
        q = rotate(self.q_norm(self.q_proj(x).view(batch, length, s.heads, s.head_dim)), cos, sin)
        k = rotate(self.k_norm(self.k_proj(x).view(batch, length, s.kv_heads, s.head_dim)), cos, sin)
        v = self.v_proj(x).view(batch, length, s.kv_heads, s.head_dim)
        k, v = (t.repeat_interleave(s.heads // s.kv_heads, dim=2) for t in (k, v))
        y = F.scaled_dot_product_attention(q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2), is_causal=True)
        return self.o_proj(y.transpose(1, 2).reshape(batch, length, s.heads * s.head_dim))


class Feedforward(nn.Module):
    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(shape.hidden, shape.intermediate, bias=False)
        self.up_proj = nn.Linear(shape.hidden, shape.intermediate, bias=False)
        self.down_proj = nn.Linear(shape.intermediate, shape.hidden, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))


class Block(nn.Module):
    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.input_layernorm = nn.RMSNorm(shape.hidden, eps=EPSILON)
        self.self_attn = Attention(shape)
        self.post_attention_layernorm = nn.RMSNorm(shape.hidden, eps=EPSILON)
        self.mlp = Feedforward(shape)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        x = x + self.self_attn(self.input_layernorm(x), cos, sin)
        return x + self.mlp(self.post_attention_layernorm(x))

    def begin_as_identity(self) -> None:
        nn.init.zeros_(self.self_attn.o_proj.weight)
        nn.init.zeros_(self.mlp.down_proj.weight)


class Transformer(nn.Module):
    """Qwen3 without its generality; parameters carry the names of the Hugging Face implementation."""

    cos: Tensor
    sin: Tensor

    def __init__(self, shape: Shape, layers: int, vocabulary: int) -> None:
        super().__init__()
        self.embed_tokens = nn.Embedding(vocabulary, shape.hidden)
        self.layers = nn.ModuleList(Block(shape) for _ in range(layers))
        self.norm = nn.RMSNorm(shape.hidden, eps=EPSILON)
        angles = torch.outer(
            torch.arange(pocket_tokenizer.CONTEXT).float(),
            ROPE_THETA ** (-torch.arange(0, shape.head_dim, 2) / shape.head_dim),
        )
        self.register_buffer("cos", angles.cos()[None, :, None], persistent=False)
        self.register_buffer("sin", angles.sin()[None, :, None], persistent=False)
        for parameter in self.parameters():
            if parameter.dim() == 2:
                nn.init.normal_(parameter, std=0.02 if parameter.shape[0] == vocabulary else 0.05)
        for block in self.blocks():
            block.begin_as_identity()

    def blocks(self) -> Iterator[Block]:
        return (block for block in self.layers if isinstance(block, Block))

    def forward(self, ids: Tensor) -> Tensor:
        """Hidden states, batch x length x hidden."""
        x = self.embed_tokens(ids)
        cos, sin = self.cos[:, : ids.shape[1]], self.sin[:, : ids.shape[1]]
        for block in self.layers:
            x = block(x, cos, sin)
        return self.norm(x)


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    first, second = x.chunk(2, dim=-1)
    return torch.cat((first * cos - second * sin, second * cos + first * sin), dim=-1)
