"""Nodes: pods as local processes, and the roles that bring pods to them.

`scheduler` chooses nodes, `jobs` is the Job controller, `attach` attaches volumes, `kubelet` runs a node's pods with
`process` and `mounts`, `logserver` hands out their logs. A pod has no mount namespace here: paths of volumes in its
command line and environment are rewritten to where they really are. Nothing outlives the pod but its log.
"""
