"""The sandbox's Kubernetes API server: what a real kube-apiserver does, as far as this product can see it.

It is a stranger to everything else: its contract is HTTP. Nothing here may know a kind of ours, or be called by
another part of the sandbox except through its URL. See `docs/sandbox-apiserver.md` for what is imitated and what isn't.
"""
