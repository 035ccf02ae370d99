"""`make demo`: one task of each model, live, on the bundled simulator."""
