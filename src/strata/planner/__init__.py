"""The stacked graph: candidates, estimates, choice, memory plan."""
