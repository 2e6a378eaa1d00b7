import hashlib
import json
import re
import subprocess
import sys

import pytest
from safetensors.torch import load_file

from deployments.pocket import tokenizer as pocket_tokenizer
from deployments.pocket.heads import Heads, read_small, tokens_an_iteration
from deployments.pocket.problems import (
    AMOUNTS,
    CATALOGUE,
    EXAMPLES,
    PRICES,
    Item,
    Problem,
    generate,
)
from deployments.pocket.train import MODELS, rendered
from router.answers import extract

LINE = re.compile(r"(?:(buys|sells) )?\b([123]) (\w+) (\w+)")


@pytest.fixture(scope="module")
def tokenizer():
    return pocket_tokenizer.build()


@pytest.fixture(scope="module")
def problems() -> list[Problem]:
    return list(generate(7, 400))


def solved(question: str) -> int:
    """The answer, from the question's own words and the catalogue alone."""
    asked = re.fullmatch(r"(?:What is the price of|How many coins is) one (\w+) (\w+)\?", question)
    if asked:
        return CATALOGUE.price(Item(*asked.groups()))
    start = re.search(r"(?:has|starts with) (\d+) coins", question)
    amount = int(start[1]) if start else 0
    for verb, quantity, adjective, noun in LINE.findall(question):
        item = Item(adjective, noun if quantity == "1" else noun.removesuffix("s"))
        cost = int(quantity) * CATALOGUE.price(item)
        amount += -cost if verb == "buys" else cost
    note = re.search(r"(?:pays with|change from) (\d+) coins", question)
    return int(note[1]) - amount if note else amount


def test_problems_are_the_same_in_every_process(problems):
    script = (
        "from deployments.pocket.problems import generate; import hashlib;"
        "print(hashlib.sha256(repr(list(generate(7, 400))).encode()).hexdigest())"
    )
    other = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert other.stdout.strip() == hashlib.sha256(repr(problems).encode()).hexdigest()


def test_a_longer_run_of_a_seed_begins_with_the_shorter_one(problems):
    assert list(generate(7, 20)) == problems[:20]


def test_splits_and_seeds_do_not_share_problems(problems):
    questions = {problem.question for problem in problems if len(problem.steps) > 4}
    for split, seed in (("train", 7), ("tune", 7), ("test", 8)):
        assert questions.isdisjoint(problem.question for problem in generate(seed, 400, split))


def test_answers_follow_from_the_question(problems):
    for problem in problems:
        assert solved(problem.question) == problem.answer, problem.question
        assert extract(problem.reply) == problem.answer


def test_every_sum_a_step_announces_is_solved_by_the_next(problems):
    for problem in problems:
        for step, after in zip(problem.steps, problem.steps[1:], strict=False):
            sum_ = re.search(r", (\d+) ([-+x]) (\d+)\.$", step)
            if sum_:
                left, sign, right = int(sum_[1]), sum_[2], int(sum_[3])
                result = {"+": left + right, "-": left - right, "x": left * right}[sign]
                assert after.startswith(f"{result} coins")


def test_looked_up_prices_are_the_catalogue_s(problems):
    for problem in problems:
        for price, adjective, noun in re.findall(r"(\d+) coins for one (\w+) (\w+)", problem.reasoning):
            assert CATALOGUE.price(Item(adjective, noun)) == int(price)


def test_amounts_stay_small(problems):
    for problem in problems:
        assert problem.answer in AMOUNTS
        assert all(int(number) <= AMOUNTS.stop for number in re.findall(r"\d+", problem.reasoning))


def test_the_small_model_never_meets_a_rare_item():
    pairs = re.compile(r"coins for one (\w+) (\w+)")
    for problem in generate(3, 500, "train", reader="small"):
        assert problem.rare == 0
        assert not any(Item(*pair) in CATALOGUE.rare for pair in pairs.findall(problem.reasoning))


def test_prices_of_unknown_items_change():
    seen: dict[tuple[str, str], set[str]] = {}
    for problem in generate(3, 4000, "train", reader="small", common_share=0.0):
        for price, *pair in re.findall(r"(\d+) coins for one (\w+) (\w+)", problem.reasoning):
            seen.setdefault(tuple(pair), set()).add(price)
    often = [prices for prices in seen.values() if len(prices) > 1]
    assert len(often) > len(seen) / 2
    assert {int(price) for prices in seen.values() for price in prices} == set(PRICES)


def test_long_problems_exist():
    assert all(len(problem.steps) >= 25 for problem in generate(7, 5, min_lines=8))


def test_examples_are_problems_with_prices():
    for question, answer in EXAMPLES:
        assert solved(question) == answer


@pytest.mark.parametrize(
    "text", ["plain words", "naïve café 😀 ﷽ \u200d", "a\n\n\n  b\t\r\n", "12345 6.7", "\x00\x7f", "<|im_x|>"]
)
def test_any_text_round_trips(tokenizer, text):
    assert tokenizer.decode(tokenizer.encode(text, add_special_tokens=False)) == text


def test_numbers_and_delimiters_are_single_tokens(tokenizer):
    for text in [*map(str, range(1000)), ".\n\n", "\n\n", "\n", "<think>", "</think>"]:
        assert len(tokenizer.encode(text, add_special_tokens=False)) == 1, text


def test_think_tags_are_not_special(tokenizer):
    ids = tokenizer.encode("<think></think><|im_end|>", add_special_tokens=False)
    assert tokenizer.decode(ids, skip_special_tokens=True) == "<think></think>"


def test_the_template_opens_thinking_once_and_drops_old_thoughts(tokenizer):
    messages = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "Hi"},
        {"role": "assistant", "content": "<think>\nHm.\n\n</think>\n\nHello."},
        {"role": "user", "content": "Bye"},
    ]
    text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    assert text == (
        "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nHi<|im_end|>\n"
        "<|im_start|>assistant\nHello.<|im_end|>\n<|im_start|>user\nBye<|im_end|>\n"
        "<|im_start|>assistant\n<think>\n"
    )


def test_prompt_and_completion_tokenise_apart(tokenizer, problems):
    for problem in problems[:50]:
        prompt, completion = rendered(tokenizer, problem, None)
        apart = [tokenizer.encode(text, add_special_tokens=False) for text in (prompt, completion)]
        assert tokenizer.encode(prompt + completion, add_special_tokens=False) == apart[0] + apart[1]


def test_the_committed_models_fit():
    weights = list(MODELS.glob("*/model.safetensors"))
    assert {path.parent.name for path in weights} == {"small", "large", "small-heads"}
    assert sum(path.stat().st_size for path in weights) <= 30_000_000
    pair = [MODELS / name for name in ("small", "large")]
    assert len({(folder / "tokenizer.json").read_bytes() for folder in pair}) == 1
    for folder in pair:
        config = json.loads((folder / "config.json").read_text())
        assert config["max_position_embeddings"] >= 4096
        assert config["head_dim"] in (32, 64, 128)


def test_the_committed_tokenizer_is_what_the_script_builds(tokenizer):
    saved = json.loads((MODELS / "small" / "tokenizer.json").read_text())
    assert saved["model"]["vocab"] == json.loads(tokenizer.backend_tokenizer.to_str())["model"]["vocab"]


def test_the_heads_that_are_committed_guess_what_the_small_model_would_say(tokenizer):
    model = read_small(MODELS)
    heads = Heads(model.embed_tokens.weight)
    heads.load_state_dict(load_file(MODELS / "small-heads" / "model.safetensors"))
    assert tokens_an_iteration(heads, model, tokenizer, generate(7, 20)) > 2.5
