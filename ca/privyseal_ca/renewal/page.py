"""The page behind ``explanationURL`` (RFC 9773 section 4.2): why a certificate is to be renewed when it is, for people."""

import html
from base64 import b64encode
from collections.abc import Mapping
from hashlib import sha256
from typing import Final

from privyseal_ca.clock import rfc3339
from privyseal_ca.renewal.due import Issued
from privyseal_ca.renewal.windows import Reason, Window

_STYLE: Final = (
    ":root{color-scheme:light dark}body{font:1rem/1.5 system-ui,sans-serif;max-width:42rem;margin:2rem auto;padding:0 1rem}"
    "dt{font-weight:600}dd{margin:0 0 .5rem}code{overflow-wrap:anywhere}"
)
#: Nothing is loaded and nothing runs; the one style is allowed by its hash.
PAGE_POLICY: Final = (
    f"default-src 'none'; style-src 'sha256-{b64encode(sha256(_STYLE.encode()).digest()).decode()}'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)

#: In one sentence each: what is the case, why, and what to do.
_TEXTS: Final[Mapping[Reason, tuple[str, str, str]]] = {
    Reason.NORMAL: (
        "Regular renewal.",
        (
            "Windows lie around two thirds of a certificate's life (half of lives under ten days), each at another time, so that "
            "certificates that were issued together are not all renewed together."
        ),
        (
            "Nothing, if your ACME client asks for renewal information: it renews in the window by itself. Otherwise have it "
            "renew within the window."
        ),
    ),
    Reason.BUSY: (
        "Regular renewal, over a longer time than usual.",
        "More certificates fall due together than this authority should sign in the usual time, so some are renewed earlier.",
        "Nothing, if your ACME client asks for renewal information. Otherwise have it renew within the window.",
    ),
    Reason.CRITICAL: (
        "Regular renewal, earlier than usual.",
        "The workload counts as critical: there is more time left if a renewal fails.",
        "Nothing, if your ACME client asks for renewal information. Otherwise have it renew within the window.",
    ),
    Reason.MAINTENANCE: (
        "Moved because of maintenance.",
        "The usual window would have been in a period in which the operators of this authority want no renewals.",
        (
            "Nothing, if your ACME client asks for renewal information. Otherwise have it renew within the window, not in the "
            "days that would be usual."
        ),
    ),
    Reason.REVOKED: (
        "Renew now: the certificate is revoked.",
        "Those who check revocation refuse it already, or will soon.",
        (
            "Renew at once, with a new key if the old one may be known to others. Ask the operators of this authority if you "
            "did not expect the revocation."
        ),
    ),
    Reason.KEY: (
        "Renew now: the key is compromised.",
        "The certificate's key was reported as known to others and is refused here for good.",
        "Make a new key and renew at once. Reusing the key will be refused.",
    ),
    Reason.ISSUER: (
        "Renew now: the issuer is no longer in use.",
        "The CA that signed the certificate has been retired or revoked; another one signs its successor.",
        "Renew at once. Serve the chain that comes with the new certificate, not the one that you had.",
    ),
}


def explanation_page(certificate_id: str, certificate: Issued, window: Window) -> str:
    """The page for one certificate, as HTML. It says no more of it than the answer to the client does."""
    title, why, what = _TEXTS[window.reason]
    facts = {
        "Certificate": f"<code>{html.escape(certificate_id)}</code>",
        "Valid": _times(certificate.not_before, certificate.not_after),
        "Suggested window": _times(window.start, window.end),
        "Reason": html.escape(window.reason.value),
        "Why": html.escape(why),
        "What to do": html.escape(what),
    }
    rows = "".join(f"<dt>{name}</dt><dd>{text}</dd>" for name, text in facts.items())
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{html.escape(title)}</title><style>{_STYLE}</style></head>"
        f"<body><main><h1>{html.escape(title)}</h1><dl>{rows}</dl></main></body></html>\n"
    )


def _times(begin: int, end: int) -> str:
    return f"<time>{rfc3339(begin)}</time> to <time>{rfc3339(end)}</time>"
