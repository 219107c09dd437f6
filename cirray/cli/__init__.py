"""Floor 7: `cirray VERB`; `stages.py` declares the verbs."""

from cirray.core.environ import start_quickly

start_quickly()  # before any class of a configuration is made
