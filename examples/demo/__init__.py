"""`make demo`: one task of each model with live progress, on the bundled simulator."""
