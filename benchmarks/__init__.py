"""The service and the floor side by side: `make bench`; benchmarks/README.md says how to read it.

module      what it holds
__main__    the command: which measurements, how many rounds
bench       what every measurement is given: rounds, servers, sides that take turns
query       QueryTask against the bare handler
create      CreateTask against handler, POST and commits
watches     10,000 open watches; the reader that stops
polls       from the provider's end to the watcher; from due to sent
upload      UploadFile against the bare pipe
start       from process start to SERVING
curves      how cost grows
servers     the service, the floor, the provider and the load as processes
databases   SQLite and PostgreSQL, empty and seeded
child       a process that takes commands by lines: both ends
floor       the floor server
provider    a stub of Kie's documented answers
load        the load
h2          the cheapest gRPC client there can be
measure     CPU time, memory, percentiles, ratios and their spread
report      the table, results.md and its charts
"""
