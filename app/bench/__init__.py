"""How fast the service is, and how close that is to what its machine allows.

Nothing is imported here: the load generator is a process of its own that shares the machine with the server, and loads
no more than it needs.
"""
