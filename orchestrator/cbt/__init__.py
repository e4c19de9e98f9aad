"""Ask a storage system which blocks of a snapshot hold data or changed: the only door to SnapshotMetadata gRPC.

`stream.delta` and `stream.allocated` are the way in. Everything a server says is checked here, because nobody else
checks it: the reference sidecar relays whatever its driver sends. A wrong "nothing changed here" is lost data, so
whenever it isn't certain that an answer is whole and lawful, the answer is thrown away and a cheaper rung of the ladder
is given up for a dearer, safer one. What must never happen here: an import of anything of Kubernetes, a deadline sent
to the server, a range believed that broke a rule, a token in an error or a log.
"""
