"""A whole cluster in one process, for the demo, the tests and storage vendors.

Its parts talk to its API server over HTTP only, so each of them runs as well against a real kube-apiserver. Nothing
here may import a controller: the sandbox is a stranger to them.
"""
