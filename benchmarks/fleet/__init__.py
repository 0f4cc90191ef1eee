"""A simulator of many replicas that serve many adapters, and what it is compared with."""
