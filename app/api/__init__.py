"""The HTTP API as an ASGI app's parts: the road of an endpoint, protocols, pages, middleware, errors."""
