"""Evaluation: metrics, baselines, bootstrap intervals, evaluation reports and gates.

The package may import inference, tasks and every layer below them, but not training or promotion.
"""
