"""Files of documents → their texts with their places; one file a kind."""
