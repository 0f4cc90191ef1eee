"""Judgement: metrics, floors, intervals, verdicts."""
