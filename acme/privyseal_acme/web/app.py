"""The ACME application."""

from aiohttp import web

from privyseal_acme.flow.context import Context
from privyseal_acme.store.nonces import Nonces
from privyseal_acme.web.middleware import observe
from privyseal_acme.web.routes import Routes


def acme_app(context: Context, routes: Routes, nonces: Nonces) -> web.Application:
    """The application that serves ``/acme/``."""
    app = web.Application(
        middlewares=[observe(nonces, context.urls, context.metrics, context.random_bytes, context.tracing)],
        client_max_size=context.settings.acme.max_body,
    )
    app.add_routes(routes.table())
    return app
