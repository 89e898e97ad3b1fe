"""What is read of receivers' answers. Loads the library that Apprise speaks HTTP with, and is loaded when something is sent."""

from time import monotonic
from typing import Any, Final

import requests

#: Octets of an answer that are read.
_MOST: Final = 1 << 20
_CHUNK: Final = 8192


class _Adapter(requests.adapters.HTTPAdapter):
    """Reads so much of an answer and no more, for so long and no longer: a receiver may send without end."""

    #: In seconds.
    limit = 30.0

    def send(  # type: ignore[override]
        self, request: requests.PreparedRequest, stream: bool = False, **options: Any
    ) -> requests.Response:
        """As the base class has it, with the content read unless ``stream``."""
        end = monotonic() + self.limit
        response = super().send(request, stream=stream, **options)
        if not stream:
            content = bytearray()
            for chunk in response.iter_content(_CHUNK):
                content += chunk
                if len(content) >= _MOST:
                    break
                if monotonic() > end:
                    raise requests.exceptions.ReadTimeout("The answer timed out.")
            response.close()
            # What `content` gives from now on.
            response._content = bytes(content)  # noqa: SLF001
        return response


def bound(limit: float) -> None:
    """Have no answer read for longer than ``limit`` seconds, nor more than a MiB of it.

    Apprise cannot be given an adapter, so this is for every session of the process; what else of this program speaks HTTP by
    this library reads its answers itself.
    """
    _Adapter.limit = limit
    requests.sessions.HTTPAdapter = _Adapter  # type: ignore[attr-defined]
