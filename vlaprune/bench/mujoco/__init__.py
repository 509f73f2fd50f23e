"""Shared by the MuJoCo benchmarks: renderers, perturbations, and the motions of scripted experts."""
