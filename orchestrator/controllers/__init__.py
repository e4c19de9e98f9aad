"""One controller per noun: gather what is there, decide without I/O, act with writes that may be repeated."""
