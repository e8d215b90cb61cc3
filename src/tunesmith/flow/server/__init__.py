"""What the API's clients keep in the store: files, keys, batches, stored chats, permissions. Knows nothing about HTTP."""
