"""What the MuJoCo benchmarks share: renderers, and the motions of scripted experts."""
