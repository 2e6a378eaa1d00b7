"""The web page: asks the server that served it, and shows which model wrote which step.

routes.py      the paths the page lives under, and the headers that keep it to itself
index.html     what there is before a script runs
style.css      colours, the table of steps, phone width, dark mode
app.js         what the controls do
server.js      the HTTP API, as far as the page uses it
sse.js         server-sent events out of chunks that may be split anywhere
lane.js        one model's run as it is written: steps, text not yet in a step, the answer
tally.js       arithmetic on lanes: tokens and time by model, the estimate, the what-if
view.js        lanes as DOM; the only place where model output meets the document, as text
transcript.js  lanes as a file and as a link
examples.js    questions that are one click away
example.json   a recorded run, shown until something is asked
"""
