"""`make demo`: tasks of four models with live progress, on the bundled simulator."""
