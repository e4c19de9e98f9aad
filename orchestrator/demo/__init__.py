"""The demonstration: the whole way of real volumes through the real controller, in a sandbox cluster.

It is a stranger to the controllers: it starts the sandbox and the controller as processes of their own, speaks to the
API server as any client would, and compares what comes back with what the storage's snapshots held.
"""
