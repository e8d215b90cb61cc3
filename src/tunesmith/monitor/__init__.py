"""What was asked and answered: the log, the live metrics, the status. Knows nothing about models."""
