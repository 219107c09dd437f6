"""Stages that measure: evaluation, scores, submissions, pages."""
