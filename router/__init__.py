"""Routing between two models, step by step, and the API around it.

The algorithm, without Ray, vLLM, HTTP or a database, in reading order:

request      what a client asks for, and what it is told
glimpse      how unsure the small model is of its next token
steps        where steps end
policy       who writes next
budget       how thinking and answer share a request's tokens
hop          what the router hands a pool, and what comes back
run          a hop as it is written, by whatever engine
prefix       token IDs per model, and how they are handed over
transcript   the state of one request
loop         the step loop
leftovers    what is left of a hop when a guess in it was wrong
controller   moves the threshold with the large pool's load
answers      the answer in a reply

Its edges:

vocabulary   a model's tokenizer and chat template
pools        a pool over a Serve handle: affinity, lost hops, deadlines
pulse        signs of life from a replica
service      a client's request in, events out
reader       what a client reads of them: text, and the steps in it
shadow       routed requests asked of the large model as well, unseen
observation, telemetry, tracing, metrics   a request as an operator sees it
deployment   all of it as a Serve deployment
api/         OpenAI's HTTP API
tenancy/     keys, limits, budgets, turns, accounts
page/        the web page
"""
