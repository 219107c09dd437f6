"""Floor 3: query and gallery encoders, the Q-Former, scoring, language models, frozen towers."""
