"""The step loop.

The small model writes on for as long as it is sure how each step begins; the large model writes the step that it
is not sure of; then the small one goes on (GlimpRouter, arXiv 2601.05110). The paper asks two questions a step;
here a run of easy steps is one hop.

Where single tokens are the large model's (`token_threshold`), the small one guesses and writes on while the large one
writes its token; more often than not that is the guess, and nobody has waited.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Mapping
from contextlib import aclosing
from typing import Protocol

from router.hop import Chunk, Hop
from router.leftovers import Leftovers
from router.request import Model, Unavailable
from router.transcript import Passage, Transcript


class Pool(Protocol):
    """The replicas of one model."""

    def write(self, hop: Hop) -> AsyncGenerator[Chunk]:
        """The hop's chunks, the last of them with its `end`. Closing the generator cancels the hop."""
        ...


async def write(page: Transcript, pools: Mapping[Model, Pool]) -> AsyncGenerator[Passage]:
    """Write a request to its end: its thinking turn by turn, then its answer. Whoever reads it may set an end to it
    (`Transcript.finish`). Closing the generator cancels the hops under way."""
    async with Leftovers(page, pools) as leftovers:
        while page.finish_reason is None:
            model, hop = page.next()
            chunks = pools[model].write(hop)
            try:
                async for chunk in chunks:
                    yield page.commit(model, chunk)
                    if chunk.guess is not None and page.finish_reason is None:
                        # The small model writes on from a token that it is unsure of; the large one writes that token.
                        judge, one_token = page.next()
                        async with aclosing(pools[judge].write(one_token)) as verdict:
                            async for written in verdict:
                                yield page.commit(judge, written)
                    wrong = chunk.guess is not None and not page.as_guessed
                    stopped = page.finish_reason is not None and chunk.end is None
                    if wrong or (stopped and hop.guesses):
                        leftovers.leave(chunks)
                    if wrong or stopped:
                        break
            except Unavailable as error:
                if not page.go_on_without(error.model):
                    raise
                if error.model != model:
                    leftovers.leave(chunks)
            finally:
                await leftovers.close(chunks)
