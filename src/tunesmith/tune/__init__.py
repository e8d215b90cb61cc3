"""Search for a better plan: what may vary, which plan is tried next and how far, and whether the best is better than the default."""
