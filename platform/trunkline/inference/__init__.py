"""Requests in, labels, numbers and texts out."""
