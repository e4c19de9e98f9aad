"""Hold the messages and stubs generated from `proto/`.

One thin module per service re-exports its generated names, so that nobody else spells `_generated`. Hand-written logic
must never live here, and nothing under `_generated/` is edited: change the .proto and run `make gen`.

The sandbox and the conformance suite encode and decode with these messages. The client decodes its two streaming
responses with `cbt/codec` instead, for speed; these messages are the oracle that its tests compare with.
"""
