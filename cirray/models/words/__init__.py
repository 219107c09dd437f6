"""Images as pseudo-words: a token made from an image stands in the slot of a prompt that a text encoder reads."""
