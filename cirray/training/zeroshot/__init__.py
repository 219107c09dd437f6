"""Training of pseudo-word maps: mapping, text-only training, tokens searched image by image and distilled."""
