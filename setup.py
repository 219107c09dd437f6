"""The packages of the wheel; everything else stands in pyproject.toml."""

from setuptools import find_packages, setup

setup(packages=[*find_packages(include=["cirray", "cirray.*"]), "cirray.recipes", "cirray.serve_configs"])
