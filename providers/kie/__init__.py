"""Kie.ai: one adapter for each model, one client, and a simulator."""
