"""Pruning methods: one idea, one file, blind to the model."""
