"""Fixtures for plugin authors; loaded by pytest through an entry point."""
