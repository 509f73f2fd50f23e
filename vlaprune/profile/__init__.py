"""What a method really saves and what it costs: latency, floors, overhead, and the fidelity of its actions."""
