"""Storage with snapshots and true deltas: sparse image files behind PersistentVolumes.

It plays five programs, each a class of its own that can be left out where the real one runs: the PV controller
(`pv_controller`, `protection`), the external provisioner and resizer (`provisioner`), the snapshot-controller
(`snapshot_controller`) and the csi-snapshotter (`snapshotter`). State is in the API objects and in the directory
(`images`); a restart on the same directory carries on. Nothing here may know who the backup client is.
"""
