"""Training from one frozen plan, exact and resumable. Knows nothing about where rows come from or how a model is served."""
