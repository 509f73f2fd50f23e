"""Statistics of paired episodes: intervals, verdicts, power, early stopping, run-to-run noise. numpy and scipy only."""
