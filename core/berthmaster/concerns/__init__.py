"""One package per concern of placement, all of the shape that `shape` describes."""
