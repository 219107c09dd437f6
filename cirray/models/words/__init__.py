"""Images as pseudo-words: a token made from an image takes the slot of a text encoder's prompt."""
