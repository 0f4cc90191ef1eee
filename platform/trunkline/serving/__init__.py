"""HTTP: OpenAI's routes, classification, regression and administration over one platform."""
