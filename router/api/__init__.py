"""OpenAI's HTTP API in front of a `Service`: bodies become `Request`s, `Event`s become JSON and SSE.

routes      which path does what; `build` makes the app
headers     how many are too many
body        bytes to JSON values, within limits
schema      what clients may send, and what it asks of the router
reply       what they get back
stream      the same, chunk by chunk
errors      what they get when it can't be had
disconnect  stops work for clients that are gone
request_id  `x-request-id`, in and out
openapi     the bodies, documented
"""
