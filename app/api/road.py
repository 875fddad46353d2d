"""The one road of a request that brings images: lease → limits → receive → parse → classify → render.

Every endpoint of every protocol takes it; they differ only in parser, renderer and error format.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence

from starlette.types import ASGIApp, Receive, Scope, Send

from ..errors import Overloaded, ServiceError
from ..types import Classification
from .carried import Images
from .endpoint import ImageEndpoint, Results
from .error_answers import error_response, no_answer
from .leases import Lease
from .leaving import ClientGone, unless_gone
from .receiving import receive_body
from .request_context import RequestContext, context_of
from .service import Service
from .timeouts import asked_seconds
from .uploads import Uploads


class Road:
    """The road of one endpoint, as an ASGI app."""

    def __init__(self, endpoint: ImageEndpoint, service: Service, uploads: Uploads) -> None:
        self._endpoint = endpoint
        self._service = service
        self._uploads = uploads

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        context = context_of(scope)
        upload = None
        answer: ASGIApp
        try:
            try:
                lease = await self._lease(context)
                upload = self._uploads.begin(context, self._endpoint.max_body_bytes)
                limited = receive if upload is None else upload.limit(receive)
                answer = await self._answer(scope, context, lease, limited)
            except ServiceError as error:
                answer = error_response(error, scope)
            except ClientGone:
                answer = no_answer(scope)
            await answer(scope, receive, send)
        finally:
            if upload is not None:
                upload.close()

    async def _lease(self, context: RequestContext) -> Lease:
        """The lease, which this service's own server has already taken; the outermost middleware gives it back."""
        if context.lease is None:
            try:
                context.lease = self._service.leases.take(asked_seconds(context.headers))
            except ServiceError:
                await asyncio.sleep(self._service.turns.wait_seconds())
                raise
        return context.lease

    async def _answer(self, scope: Scope, context: RequestContext, lease: Lease, receive: Receive) -> ASGIApp:
        service, endpoint = self._service, self._endpoint
        parser = endpoint.parser(scope, context.headers)
        carried = await receive_body(receive, parser)
        service.leases.body_ended(lease)
        own_seconds = service.settings.longest_request_seconds
        deadline = time.monotonic() + min(own_seconds, parser.timeout_seconds or own_seconds)
        work = self._classify(lease, carried, deadline)
        outcomes = await unless_gone(context.connection, receive, work)
        rendered = endpoint.render(
            Results(lease.model.identity, outcomes, context.request_id, scope.get("root_path", ""))
        )
        if isinstance(rendered, ServiceError):
            if isinstance(rendered, Overloaded):
                await asyncio.sleep(service.turns.wait_seconds())
            return error_response(rendered, scope)
        return _Answer(rendered, endpoint.media_type, _stages(context, outcomes))

    async def _classify(
        self, lease: Lease, carried: Images, deadline: float
    ) -> Sequence[Classification | ServiceError]:
        """Each image's classification or error, in the order sent. Raises `InvalidParameter`."""
        classifier, model, images = self._service.classifier, lease.model, carried.images
        top_k = classifier.resolve_top_k(model, carried.top_k)
        batch = object() if len(images) > 1 else None

        async def one(image: bytes | ServiceError) -> Classification | ServiceError:
            if isinstance(image, ServiceError):
                return image
            try:
                return await classifier.classify(model, image, top_k, deadline, batch)
            except ServiceError as error:
                # Without the traceback: its frames hold the image, and the outcomes hold the error.
                return error.with_traceback(None)

        if len(images) == 1:
            return (await one(images[0]),)
        return await asyncio.gather(*[one(image) for image in images])


class _Answer:
    """A 200 with its whole body. (Starlette's `Response` takes three times as long.)"""

    def __init__(self, body: bytes, media_type: str, headers: list[tuple[bytes, bytes]]) -> None:
        self._body = body
        self._headers = [
            *headers,
            (b"content-length", str(len(body)).encode()),
            (b"content-type", media_type.encode()),
        ]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": self._headers})
        await send({"type": "http.response.body", "body": self._body})


def _stages(context: RequestContext, outcomes: Sequence[Classification | ServiceError]) -> list[tuple[bytes, bytes]]:
    """`Server-Timing` in milliseconds and `X-Batch-Size`; for several images, the maximum of each.

    The request's log line has the same figures.
    """
    answered = [outcome for outcome in outcomes if isinstance(outcome, Classification)]
    if not answered:
        return []
    stages = {
        "decode": max(each.timings.decode_seconds for each in answered) * 1e3,
        "queue": max(each.timings.queue_seconds for each in answered) * 1e3,
        "inference": max(each.timings.inference_seconds for each in answered) * 1e3,
    }
    batch_size = max(each.batch_size for each in answered)
    context.stages = {f"{stage}_ms": round(ms, 2) for stage, ms in stages.items()} | {
        "batch_size": batch_size,
        "images": len(answered),
    }
    timing = ", ".join(f"{stage};dur={ms:.2f}" for stage, ms in stages.items())
    return [(b"server-timing", timing.encode()), (b"x-batch-size", str(batch_size).encode())]
