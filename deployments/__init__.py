"""What runs on the cluster, and what starts it there.

config        what a profile's `args` may say
app           builds the Serve application from them
engine        one vLLM engine in a replica; `engine_args` is what it is started with
scheduler     ends a hop in the engine itself; `sessions` keeps its request for the next one
worker        what is added to vLLM's workers: `glimpses` (entropy instead of logprobs), `drafts`
autoscaling   how many replicas a pool needs
token_count   what an engine says of itself
logs          Serve's log in a replica that starts an engine
lifeline      nothing outlives the system it belongs to

cli           `glimprouter`
plan          a profile that was read, with all that can be checked before anything runs
exposure      nobody gets in without a key, unless it listens on this machine only
launcher      starts it on one machine; `progress` shows how, `first_question` is the proof
rollout       changes a running system without a failed request; `attaching` makes this process part of its cluster
asking        `glimprouter ask`
proxies       what this machine asks itself goes through none
tenants       `glimprouter keys`, `tenants`, `usage` and `shadow`

profiles/     Serve config files
pocket/       the embedded pair: its weights, and how they were made
"""
