"""The process that serves HTTP: the app's wiring, uvicorn with this service's protocol, sockets, signals, shutdown."""
