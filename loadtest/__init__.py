"""Measuring commands (`python -m loadtest.…`, each has `--help`); `docs/benchmarks.md` has what they found.

Against other ways     versus, gateways, throughput, overhead
Quality                quality, frontier (its plot), hops; calibrate is `glimprouter calibrate`
Load                   locustfile, overload, soak, steering, capacity
A cluster's days       chaos, nodes, rolling, scaling, affinity
Tenants                admission, fairness, ledger, attacks
Single costs           switching, sessions, hop_time, warm_up, tracing_cost
Recorded models        record, recorded

What they share: `command` (options, a system of one's own), `systems` (ways to have a problem solved), `client`,
`streamed`, `traffic`, `offered`, `arrivals` (asking), `questions`, `outcomes`, `intervals`, `verdict`, `hard_steps`
(judging), `engines`, `servers`, `tenants`, `cluster`, `namespaces`, `receiver` (what is asked), `processes`, `forward`
(CPU time and memory), `simulation`, `paper`, `table`. `paced` stands in for an engine; `paced_worker`,
`recorded_worker` and `timed_worker` are loaded by vLLM.
"""
