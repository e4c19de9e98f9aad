"""What Kubernetes itself says about its builtin kinds: discovery entries and schemas, cut out of a release.

`kinds.json` is made by `python -m orchestrator.sandbox.apiserver.builtin.cut` from the Kubernetes sources
(Apache-2.0). It is data, never edited by hand: the schemas carry the merge keys, list types and field types that
strategic merge, server-side apply, strict field validation and `kubectl explain` all live on.
"""
