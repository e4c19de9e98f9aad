"""The SnapshotMetadata service of the sandbox's driver, as a backup client meets it, and the driver's own side of it.

`core` answers from the images, `encoding` puts answers on the wire, `server` is the cluster's side (TLS, tokens, checks
in the order of cbt-contract 2.2), `driver` the CSI side (a Unix socket), `sabotage` what faults do to a stream. It
encodes with the generated messages and its own arrays, never with the client's codec: one mistake must not hide the
other.
"""
