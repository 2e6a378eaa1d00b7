"""Multi-step word problems about a price list, from a seed.

A shopper buys, sells or orders items; the reasoning looks every price up, multiplies, and keeps a running
amount. Arithmetic stays small (amounts 0..99, prices 6..25, quantities 1..3), so that looking a price up is
the only thing that can be hard. An item is an adjective and a noun of a 64 x 64 grid, and one fixed catalogue
prices some of the pairs:

- *common* items (150): both models of the pair are trained on their prices;
- *rare* items (800): only the large model is;
- the other pairs have no price. The small model meets them in training with a price drawn afresh every time,
  and so learns that it does not know the price of a pair it has not met. It never meets a rare item.

A step starts with what it finds out ("25 coins for one copper kettle, 3 x 25."), and ends with what the next
step needs. Common and rare items share words, sentences and places in the list: nothing in the text says
which is which.

Seeds. `generate(seed, count, split)` draws from a stream of its own for every (split, seed): "train" is what
`train.py` uses, "tune" is for choosing a threshold, "test" is for reporting. A problem is written from its
own (split, seed, index), so no seed of one split can reproduce another split's stream.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

DELIMITER = "\n\n"
AMOUNTS = range(100)
PRICES = range(6, 26)
QUANTITIES = range(1, 4)
COMMON_ITEMS = 150
RARE_ITEMS = 800
CATALOGUE_SEED = 2601
LINES = (10, 45, 37, 4, 1.5, 1, 0.5, 0.5, 0.5)

Split = Literal["train", "tune", "test"]
Reader = Literal["large", "small"]

_ADJECTIVES = """
    copper silver golden iron wooden silk velvet cotton woolen leather paper marble crystal amber jade ivory
    crimson scarlet orange yellow green blue purple violet black white brown pink tiny small large giant
    heavy light narrow wide round square curved folded painted carved polished rusty ancient modern royal
    simple striped spotted plain fancy quiet noisy frozen smoky foreign local northern southern eastern
    western hidden broken"""
_NOUNS = """
    kettle lamp bowl plate spoon fork mug bottle basket barrel bucket hammer saw chisel drill shovel rake
    ladder rope candle lantern mirror clock bell drum flute violin guitar trumpet carpet curtain blanket pillow
    table chair stool trunk desk drawer cabinet coat hat glove boot sandal belt ring necklace bracelet crown
    shield helmet kite doll robot boat wagon saddle anchor sundial telescope map book pencil"""
_WOMEN = "Mia Anna Clara Emma Grace Hana Ines Julia Lena Maya Nora Olga Priya Rosa Sara Zoe"
_MEN = "Adam Ben Carl David Emil Felix Hugo Ivan Jonas Karim Leo Marco Noah Oscar Pavel Yusuf"

ADJECTIVES, NOUNS, WOMEN, MEN = (tuple(words.split()) for words in (_ADJECTIVES, _NOUNS, _WOMEN, _MEN))

EXAMPLES = (
    (
        "Grace starts with 61 coins and sells 3 paper robots, then buys 3 quiet chairs, then sells 3 smoky tables. "
        "How many coins does she have now?",
        64,
    ),
    ("What does Julia pay for 3 wide buckets, then 1 marble anchor, then 3 tiny trumpets?", 55),
    (
        "Oscar orders 1 square glove, then 3 northern robots, then 1 carved shovel. He pays with 100 coins. "
        "What is the change?",
        16,
    ),
)


@dataclass(frozen=True)
class Item:
    """A pair of the grid."""

    adjective: str
    noun: str

    def named(self, quantity: int) -> str:
        return f"{self.adjective} {self.noun}{'' if quantity == 1 else 's'}"


@dataclass(frozen=True)
class Catalogue:
    """Prices in coins, and the pairs that have none."""

    common: dict[Item, int]
    rare: dict[Item, int]
    unpriced: tuple[Item, ...]

    def price(self, item: Item) -> int | None:
        return self.common.get(item, self.rare.get(item))


def _catalogue() -> Catalogue:
    rng = random.Random(CATALOGUE_SEED)
    grid = [Item(adjective, noun) for adjective in ADJECTIVES for noun in NOUNS]
    rng.shuffle(grid)
    rare_end = COMMON_ITEMS + RARE_ITEMS
    return Catalogue(
        common={item: rng.choice(PRICES) for item in grid[:COMMON_ITEMS]},
        rare={item: rng.choice(PRICES) for item in grid[COMMON_ITEMS:rare_end]},
        unpriced=tuple(grid[rare_end:]),
    )


CATALOGUE = _catalogue()


@dataclass(frozen=True)
class Problem:
    """A question, the one right reasoning, and the answer.

    `steps` come without their trailing delimiter. `history` holds earlier turns, (question, answer text) each;
    `rare` is the number of look-ups that only the large model can know.
    """

    question: str
    steps: tuple[str, ...]
    answer: int
    rare: int = 0
    history: tuple[tuple[str, str], ...] = ()

    @property
    def messages(self) -> list[dict[str, str]]:
        """The chat up to the question, as the API takes it."""
        turns = [
            {"role": role, "content": text}
            for turn in self.history
            for role, text in zip(("user", "assistant"), turn, strict=True)
        ]
        return [*turns, {"role": "user", "content": self.question}]

    @property
    def reasoning(self) -> str:
        """What stands between the think tags, every step with its delimiter."""
        return "".join(step + DELIMITER for step in self.steps)

    @property
    def reply(self) -> str:
        """The answer as the assistant says it."""
        return f"The answer is {self.answer}."

    @property
    def completion(self) -> str:
        """All that the model writes after `<think>\\n`, its end token excepted."""
        return f"{self.reasoning}</think>\n\n{self.reply}"


@dataclass(frozen=True)
class _Line:
    """One line of a list: what happens to how many of which item, and what one costs."""

    verb: str
    quantity: int
    item: Item
    price: int
    before: int

    @property
    def cost(self) -> int:
        return self.quantity * self.price

    @property
    def after(self) -> int:
        return self.before + (-self.cost if self.verb == "buys" else self.cost)

    @property
    def goods(self) -> str:
        return f"{self.quantity} {self.item.named(self.quantity)}"

    @property
    def words(self) -> str:
        return f"{self.verb} {self.goods}".strip()

    @property
    def work(self) -> tuple[str, str]:
        """The look-up and the product; each ends with the sum that the next step solves."""
        sign = "-" if self.verb == "buys" else "+"
        return (
            f"{self.price} coins for one {self.item.named(1)}, {self.quantity} x {self.price}.",
            f"{self.cost} coins for {self.goods}, {self.before} {sign} {self.cost}.",
        )


def _verbs(amount: int, cost: int) -> list[str]:
    """What can be done with an item of this cost without leaving the range of amounts."""
    return [verb for verb, after in (("buys", amount - cost), ("sells", amount + cost)) if after in AMOUNTS]


class _Writer:
    """Writes one problem from a random stream, with the items that its reader may see."""

    def __init__(self, rng: random.Random, reader: Reader, common_share: float) -> None:
        self.rng = rng
        self.reader = reader
        self.common_share = common_share

    def problem(self, min_lines: int, max_lines: int) -> Problem:
        kind = self.rng.choices(("balance", "bill", "change", "price"), (58, 22, 16, 4))[0]
        lines = self.rng.choices(range(min_lines, max_lines + 1), LINES[min_lines - 1 : max_lines])[0]
        return getattr(self, f"_{kind}")(lines)

    def _items(self, count: int) -> list[tuple[Item, int]]:
        """Distinct words within one problem, so that a word names one line of the list."""
        chosen: list[tuple[Item, int]] = []
        while len(chosen) < count:
            item, price = self._item()
            if all(item.adjective != other.adjective and item.noun != other.noun for other, _ in chosen):
                chosen.append((item, price))
        return chosen

    def _item(self) -> tuple[Item, int]:
        if self.rng.random() < self.common_share:
            return self.rng.choice(_COMMON)
        if self.reader == "small":
            return self.rng.choice(CATALOGUE.unpriced), self.rng.choice(PRICES)
        return self.rng.choice(_RARE)

    def _quantity(self) -> int:
        return self.rng.choices(QUANTITIES, (2, 3, 3))[0]

    def _shopper(self) -> tuple[str, str]:
        name = self.rng.choice(WOMEN + MEN)
        return name, "she" if name in WOMEN else "he"

    def _balance(self, count: int) -> Problem:
        name, who = self._shopper()
        start = amount = self.rng.choice(AMOUNTS[10:])
        lines: list[_Line] = []
        for item, price in self._items(count):
            quantity = self._quantity()
            while not (can := _verbs(amount, quantity * price)):
                quantity -= 1
            line = _Line(self.rng.choice(can), quantity, item, price, amount)
            lines.append(line)
            amount = line.after
        deeds = ", then ".join(line.words for line in lines)
        question = self.rng.choice(
            (
                f"{name} has {start} coins. {who.capitalize()} {deeds}. How many coins are left?",
                f"{name} starts with {start} coins and {deeds}. How many coins does {who} have now?",
                f"How many coins are left if {name} has {start} coins and {deeds}?",
            )
        )
        steps = [f"{start} coins to start with, {lines[0].words}."]
        steps += self._chain(lines, "left")
        return self._told(question, steps, amount, lines)

    def _order(self, count: int) -> list[_Line]:
        """Lines of one order; cut short where the bill would leave the range of amounts."""
        lines: list[_Line] = []
        for item, price in self._items(count):
            before = lines[-1].after if lines else 0
            line = _Line("", self._quantity(), item, price, before)
            if line.after not in AMOUNTS:
                break
            lines.append(line)
        return lines

    def _bill(self, count: int) -> Problem:
        name, who = self._shopper()
        lines = self._order(count)
        goods = ", then ".join(line.goods for line in lines)
        question = self.rng.choice(
            (
                f"{name} orders {goods}. What is the bill?",
                f"What does {name} pay for {goods}?",
                f"{name} orders {goods}. How many coins does {who} pay?",
            )
        )
        steps = [f"0 coins so far, {lines[0].words}.", *self._chain(lines, "so far")]
        return self._told(question, steps, lines[-1].after, lines)

    def _change(self, count: int) -> Problem:
        name, who = self._shopper()
        lines = self._order(count)
        bill = lines[-1].after
        note = self.rng.choice([note for note in (50, 100) if note >= bill])
        goods = ", then ".join(line.goods for line in lines)
        question = self.rng.choice(
            (
                f"{name} orders {goods}. {who.capitalize()} pays with {note} coins. What is the change?",
                f"{name} orders {goods}. What is the change from {note} coins?",
            )
        )
        steps = [f"0 coins so far, {lines[0].words}.", *self._chain(lines, "so far", f", {note} - {bill}")]
        steps.append(f"{note - bill} coins of change.")
        return self._told(question, steps, note - bill, lines)

    def _price(self, count: int) -> Problem:
        item, price = self._item()
        question = self.rng.choice(
            (f"What is the price of one {item.named(1)}?", f"How many coins is one {item.named(1)}?")
        )
        steps = [f"1 price to find, one {item.named(1)}.", f"{price} coins for one {item.named(1)}."]
        return self._told(question, steps, price, [_Line("", 1, item, price, 0)])

    def _chain(self, lines: list[_Line], so: str, ending: str = "") -> Iterator[str]:
        """Three steps a line; the third names the line that follows."""
        following = [f", then {line.words}" for line in lines[1:]] + [ending]
        for line, rest in zip(lines, following, strict=True):
            yield from line.work
            yield f"{line.after} coins {so} after the {line.item.named(line.quantity)}{rest}."

    def _told(self, question: str, steps: list[str], answer: int, lines: list[_Line]) -> Problem:
        rare = sum(line.item in CATALOGUE.rare for line in lines)
        return Problem(question, tuple(steps), answer, rare)


def exercises(rng: random.Random, count: int, reader: Reader, common_share: float) -> Iterator[tuple[str, str, bool]]:
    """Yield the hard parts of problems alone, for training: a line as a step ends, the number that follows, and
    whether that is a price drawn afresh.

    Half are sums over the whole range of amounts, so that none is left to luck; half are look-ups.
    """
    writer = _Writer(rng, reader, common_share)
    costs = sorted({quantity * price for quantity in QUANTITIES for price in PRICES})
    for _ in range(count):
        if rng.random() < 0.5:
            item, price = writer._item()
            quantity = writer._quantity()
            yield f"{quantity} {item.named(quantity)}.", str(price), CATALOGUE.price(item) is None
            continue
        amount = rng.choice(AMOUNTS)
        cost = rng.choice([cost for cost in costs if _verbs(amount, cost)])
        verb = rng.choice(_verbs(amount, cost))
        line, result = (
            (f"{amount} - {cost}.", amount - cost) if verb == "buys" else (f"{amount} + {cost}.", amount + cost)
        )
        yield line, str(result), False


_COMMON = tuple(CATALOGUE.common.items())
_RARE = tuple(CATALOGUE.rare.items())


def generate(
    seed: int,
    count: int,
    split: Split = "test",
    *,
    reader: Reader = "large",
    common_share: float = 0.45,
    two_turns: float = 0.0,
    min_lines: int = 1,
    max_lines: int = 9,
) -> Iterator[Problem]:
    """Yield `count` problems, the same ones for the same arguments in every process.

    `reader` says whose training they may serve: "small" never holds a rare item. `common_share` is the
    probability that a look-up is of a common item, `two_turns` that a problem follows another one in a chat,
    `min_lines` and `max_lines` bound the shopping list (three steps a line, and one or two more).
    """
    for index in range(count):
        writer = _Writer(random.Random(f"{split}/{reader}/{seed}/{index}"), reader, common_share)
        problem = writer.problem(min_lines, max_lines)
        while len(problem.steps) < 1 + 3 * min_lines and min_lines > 1:
            problem = writer.problem(min_lines, max_lines)
        if writer.rng.random() < two_turns:
            before = writer.problem(1, 3)
            history = ((before.question, before.reply),)
            problem = Problem(problem.question, problem.steps, problem.answer, problem.rare, history)
        yield problem
