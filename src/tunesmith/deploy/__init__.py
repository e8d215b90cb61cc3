"""Which model answers under which name, and the thread that computes. Knows nothing about HTTP."""
