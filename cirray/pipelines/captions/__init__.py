"""SPN's generated positives: one caption an image, and the generator that fills templates with them."""
