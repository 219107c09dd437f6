"""Floor 7: `cirray VERB`, one verb a file."""

from cirray.core.environ import start_quickly

start_quickly()  # before any class of a configuration is made
