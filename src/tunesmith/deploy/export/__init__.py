"""A trained model as other programs take it: one file a target. Knows nothing about words, projects and where a model comes from."""
