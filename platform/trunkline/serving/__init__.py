"""The HTTP server: OpenAI's routes, classification, regression, administration and metrics.

Serving is the layer above :mod:`trunkline.api`: it imports the platform and everything below it,
and only the command line imports it. Routes read ``request.state.context``, the
:class:`~trunkline.serving.service.RequestContext` that the middleware creates.
"""
