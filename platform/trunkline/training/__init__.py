"""Recipe and data → a proven, evaluated, published artifact."""
