"""What is known of Kie's models: bundled facts, the catalogue API, and the check of an input."""
