"""Recipe and data → a proven, judged, published artifact."""
