"""The only door to the API server: client, cache, queue, lease, Events, tokens.

No other room opens a connection to Kubernetes. Objects come in as msgspec Structs of `api/`, errors leave as
`kube.errors`. What must never happen here: a rule about backups, or a token in a message.
"""
