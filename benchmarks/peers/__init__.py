"""The same work in other serving systems, each as its own documentation would have it."""
