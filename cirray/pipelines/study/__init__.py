"""A study: methods as chains of stages in one YAML file, run over seeds, in one table with claims and curves."""
