"""Floor 3: vector indexes: FAISS and its exact NumPy twin."""
