"""An application that answers the same bytes to everyone, for bench_http.py: what is left is HTTP and Ray.

No postponed annotations in this module: Serve reads the type of `args` to validate them.
"""

from typing import Any

from ray import serve
from ray.serve import Application


def build_app(args: dict[str, Any]) -> Application:
    """The application, with the options of the service's own deployment; `args` has the answer's length in bytes."""
    body = b"x" * int(args["length"])
    head = [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(body))]

    async def echo(scope: Any, receive: Any, send: Any) -> None:
        while scope["type"] == "lifespan":
            await send({"type": f"{(await receive())['type']}.complete"})
        await receive()
        await send({"type": "http.response.start", "status": 200, "headers": head})
        await send({"type": "http.response.body", "body": body})

    def echo_app() -> Any:
        return echo

    class Echo:
        """Holds nothing."""

    return serve.deployment(name="Retriever", max_ongoing_requests=96)(serve.ingress(echo_app)(Echo)).bind()
