"""The copy engine: from a raw volume into the repository, and back.

It exists so that a backup costs what changed and runs near the hardware's limit. It knows plans, devices and a vault;
it must never know Kubernetes, never read a byte that the plan doesn't name, and never write a byte whose content it
didn't check.
"""
