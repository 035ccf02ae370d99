"""Measurements of the service next to a minimal baseline server: `make bench`; see README.md.

module      responsibility
__main__    the command: which measurements, how many rounds
against     the command that compares an old commit with this checkout
charts      the command that draws the results
command     what the commands have in common
bench       what every measurement gets; how sides are measured in turns
query       QueryTask against a bare handler
create      CreateTask against a handler with the same POST and commits
watches     10,000 open watches; a client that stops reading
polls       from the provider's result to the watcher; from due to sent
upload      UploadFile against a bare pipe
copies      copies of results into an S3 server against a bare pipe, and what they cost calls
start       from process start to SERVING
curves      how cost grows
servers     the service as a process
databases   SQLite and PostgreSQL, empty and with tasks
tasks       the tasks, and the requests for them
seed        fills the database of another checkout
child       a process that answers commands: both ends
baseline    the baseline server
provider    a stub of Kie with its documented responses
media       a provider with large results
pipe        a bare pipe from a URL into an S3 server
load        the load generator
h2          a cheap gRPC client
measure     CPU time, memory, percentiles, ratios and their spread
table       results with their targets and units, as text
results     results.json and results.md
"""
