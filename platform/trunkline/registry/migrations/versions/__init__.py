"""Revisions in order; a released revision is never changed."""
