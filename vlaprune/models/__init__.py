"""Models: prompt, layout and head of each policy, blind to the methods."""
