"""Who may ask, how much, in which turn, and what it came to.

tenant      a tenant's policy, and the caller that a request comes from
keys        API keys: random, shown once, kept as digests
settings    what a deployment says of all this
database    the database; `tables` is its schema, `migrations/` makes it
directory   tenants and keys in the database
gate        a key on every request, limits on every response
limits      requests and tokens a minute, requests at a time; shared by all routers through Redis
spending    monthly budgets and prices
fairness    whose turn it is when the system is full
journal     finished requests on disk, until the database has them
delivery    from the journal to the database
ledger      one row a request in the database, and sums over them
comparisons what shadow runs found, one row each
permission  a request as its tenant's policy lets it be
leases      places for requests at a time
tenancy     what a router replica holds of all this
tenanted    all of it around the router's service
routes      /v1/usage; `reply` has what it answers

`tenant`, `keys`, `fairness` and the prices know no database, Redis or HTTP.
"""
