"""Engines: whatever answers a question made of pictures and text, a server or a model in this process."""
