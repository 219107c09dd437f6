"""The embedded world: scenes of coloured shapes, edits, a grammar of modification texts and a judge."""
