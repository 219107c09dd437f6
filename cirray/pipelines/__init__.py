"""Floor 6: every stage as an artifact-making function; Ray Data, Train and Tune live here."""
