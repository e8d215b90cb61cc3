"""Fine-tuning jobs: the queue in the store, the workers, what one job does. Knows nothing about HTTP."""
