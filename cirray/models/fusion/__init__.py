"""How a reference image and a text become one query: one head per file, chosen by name."""
