"""The benchmark of a service: load generator, rooflines of its stages, and a report that compares them.

Nothing is imported here: the load generator is a separate process beside the server, and imports only what it needs.
"""
