"""Rules over plain values: no I/O, no clock, no Kubernetes. Would make sense in another product."""
