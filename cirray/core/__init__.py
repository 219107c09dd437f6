"""Floor 0: configuration, artifacts, storage, errors, progress. Knows neither torch nor ray."""
