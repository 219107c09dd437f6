"""Floor 6: every stage as an artifact-making function; Ray Data, Train and Tune live here."""

import gc

# a process that loads torch and transformers spent a seventh of that time (more on a busy machine) looking for garbage
gc.set_threshold(max(20_000, gc.get_threshold()[0]))
