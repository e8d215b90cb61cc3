"""What is kept: every table, every folder name, every transaction. Knows nothing about what the rows mean."""
