"""Evaluation: metrics, baselines, intervals, verdicts."""
