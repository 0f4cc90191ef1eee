"""Training: a recipe and its dataset become a verified, evaluated and published adapter.

May import everything below ``trunkline.api``; modules above must import it lazily, because the
trainer loads torch and transformers.
"""
