"""Takes the model for a request and gives it back: the one place where the API meets admission."""

from __future__ import annotations

from ..classifier import Admitted, Classifier

Lease = Admitted


class Leases:
    """The leases of one classifier. A lease begins at the headers and ends after the answer."""

    def __init__(self, classifier: Classifier) -> None:
        self._classifier = classifier

    def take(self, asked_seconds: float | None) -> Lease:
        """A lease of the model for a request with a deadline of `asked_seconds`. Raises the error of a refusal."""
        return self._classifier.admit(asked_seconds)

    def body_ended(self, lease: Lease) -> None:
        """The body is complete: from now on each image of the request has its own reservation, or is refused."""
        lease.body_has_ended()

    def give_back(self, lease: Lease) -> None:
        """The request is over, with or without an answer."""
        lease.give_back()
