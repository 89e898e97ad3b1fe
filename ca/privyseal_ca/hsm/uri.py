"""Names of tokens and keys: PKCS #11 URIs (RFC 7512).

A URI is parsed strictly. What does not name a key in a way that survives a restart (slot numbers), or what would carry
a secret (``pin-value``), is refused rather than ignored.
"""

import re
from dataclasses import dataclass, replace
from pathlib import Path
from urllib.parse import quote, unquote_to_bytes, urlsplit

from privyseal_ca.errors import ConfigurationError

_MAX_LENGTH = 4096
# RFC 7512 section 2.3: pk11-res-avail, and what the path and the query add to it.
_RESERVED = ":[]@!$'()*+,="
_PATH_SAFE = _RESERVED + "&"
_QUERY_SAFE = _RESERVED + "/?|"
_PATH_VALUE = re.compile(r"(?:[A-Za-z0-9._~\-:\[\]@!$'()*+,=&]|%[0-9A-Fa-f]{2})*")
_QUERY_VALUE = re.compile(r"(?:[A-Za-z0-9._~\-:\[\]@!$'()*+,=/?|]|%[0-9A-Fa-f]{2})*")

# Attribute name -> longest value in bytes (the fields of CK_TOKEN_INFO; a bound of our own for the others).
_PATH_TEXT = {"token": 32, "manufacturer": 32, "serial": 16, "model": 16, "object": 255}
_PATH_NAMES = frozenset({*_PATH_TEXT, "id", "type"})
_QUERY_NAMES = frozenset({"module-path", "pin-source"})
_TYPES = frozenset({"public", "private", "cert", "secret-key", "data"})
_UNSTABLE = "Name the token by token=LABEL or serial=NUMBER instead."
_REFUSED = {
    "slot-id": f"Slot numbers change when tokens come and go. {_UNSTABLE}",
    "slot-description": f"A slot is not a token. {_UNSTABLE}",
    "slot-manufacturer": f"A slot is not a token. {_UNSTABLE}",
    "library-manufacturer": "Name the module by module-path=/FILE in the query.",
    "library-description": "Name the module by module-path=/FILE in the query.",
    "library-version": "Name the module by module-path=/FILE in the query.",
    "module-name": "Name the module by module-path=/FILE in the query.",
    "pin-value": "A PIN does not belong in a URI. Put it into a file and name that by pin-source=file:/FILE.",
}


@dataclass(frozen=True)
class KeyUri:
    """A token, or a key in one (RFC 7512 section 2.3). Attributes that are ``None`` match anything."""

    token: str | None = None
    manufacturer: str | None = None
    serial: str | None = None
    model: str | None = None
    object: str | None = None
    id: bytes | None = None
    type: str | None = None
    module_path: Path | None = None
    pin_source: str | None = None

    def __post_init__(self) -> None:
        for name, limit in _PATH_TEXT.items():
            value: str | None = getattr(self, name)
            if value is not None and ("\0" in value or len(value.encode()) > limit):
                raise _malformed(f"the value of {name} is longer than {limit} bytes or holds a NUL")
        if self.id is not None and len(self.id) > 255:
            raise _malformed("the value of id is longer than 255 bytes")
        if self.type is not None and self.type not in _TYPES:
            raise _malformed(f"type is none of {', '.join(sorted(_TYPES))}")
        if self.module_path is not None and not self.module_path.is_absolute():
            raise _malformed("module-path is relative", "Give the module's absolute path.")
        if self.pin_source is not None:
            _pin_file(self.pin_source)

    @classmethod
    def parse(cls, text: str) -> "KeyUri":
        """The URI that ``text`` is.

        Raises:
            ConfigurationError: it is malformed, or uses an attribute that is refused. No value is repeated in it.
        """
        scheme, colon, rest = text.partition(":")
        if not colon or scheme.lower() != "pkcs11" or len(text) > _MAX_LENGTH:
            raise _malformed(f"it does not start with pkcs11: or is longer than {_MAX_LENGTH} characters")
        path, _, query = rest.partition("?")
        raw = _attributes(path, ";", _PATH_VALUE, _PATH_NAMES)
        raw |= _attributes(query, "&", _QUERY_VALUE, _QUERY_NAMES)
        module_path = raw.get("module-path")
        return cls(
            **{name: _text(name, raw[name]) for name in (*_PATH_TEXT, "type") if name in raw},
            id=raw.get("id"),
            module_path=None if module_path is None else Path(_text("module-path", module_path)),
            pin_source=_text("pin-source", raw["pin-source"]) if "pin-source" in raw else None,
        )

    def __str__(self) -> str:
        path = [
            f"{name}={quote(value, safe=_PATH_SAFE)}"
            for name in ("token", "manufacturer", "serial", "model", "object")
            if (value := getattr(self, name)) is not None
        ]
        if self.id is not None:
            path.append("id=" + "".join(f"%{octet:02X}" for octet in self.id))
        if self.type is not None:
            path.append(f"type={self.type}")
        query = []
        if self.module_path is not None:
            query.append(f"module-path={quote(str(self.module_path), safe=_QUERY_SAFE)}")
        if self.pin_source is not None:
            query.append(f"pin-source={quote(self.pin_source, safe=_QUERY_SAFE)}")
        return "pkcs11:" + ";".join(path) + ("?" + "&".join(query) if query else "")

    @property
    def token_uri(self) -> "KeyUri":
        """The token alone, without the object."""
        return replace(self, object=None, id=None, type=None)

    @property
    def pin_file(self) -> Path | None:
        """The file that ``pin-source`` names."""
        return None if self.pin_source is None else _pin_file(self.pin_source)


def _attributes(component: str, separator: str, grammar: re.Pattern[str], names: frozenset[str]) -> dict[str, bytes]:
    """The attributes of the path or the query, percent-decoded."""
    found: dict[str, bytes] = {}
    for pair in component.split(separator) if component else ():
        name, equals, value = pair.partition("=")
        if name in _REFUSED:
            raise _malformed(f"{name} is not accepted", _REFUSED[name])
        if name not in names:
            raise _malformed("it has an attribute that is not known, or not in its place")
        if not equals or not grammar.fullmatch(value):
            raise _malformed(f"the value of {name} has characters that must be percent-encoded")
        if name in found:  # RFC 7512 section 2.3: at most once; we ask the same of the query
            raise _malformed(f"{name} is given twice")
        found[name] = unquote_to_bytes(value)
    return found


def _text(name: str, value: bytes) -> str:
    try:
        return value.decode()
    except UnicodeDecodeError as error:
        raise _malformed(f"the value of {name} is not UTF-8") from error


def _pin_file(source: str) -> Path:
    """The file of a ``pin-source`` (RFC 7512 section 2.4)."""
    if source.startswith("|"):
        raise _malformed("pin-source runs a program, which is not accepted", "Use pin-source=file:/FILE.")
    path = source
    if source.lower().startswith("file:"):
        parts = urlsplit(source)
        if parts.netloc not in {"", "localhost"} or parts.query or parts.fragment:
            raise _malformed("pin-source is no file of this machine", "Use pin-source=file:/FILE.")
        path = parts.path
    if not Path(path).is_absolute() or "\0" in path:
        raise _malformed("pin-source is no absolute path", "Use pin-source=file:/FILE.")
    return Path(path)


def _malformed(reason: str, hint: str = "") -> ConfigurationError:
    return ConfigurationError(
        f"A PKCS #11 URI is refused: {reason}.",
        hint=hint or "The form is pkcs11:token=LABEL;object=LABEL?module-path=/FILE (RFC 7512).",
    )
