"""The full linter: pkilint's rules of RFC 5280 and its successors.

A module of its own because importing pkilint takes a fifth of a second, which commands that issue nothing do not pay.
"""

# pkilint is annotated in part.
# mypy: disable-error-code="no-untyped-call, no-any-return"

from functools import cache
from types import MappingProxyType
from typing import Final

from pkilint import loader
from pkilint.pkix import certificate, extension, name
from pkilint.validation import ValidationFindingSeverity, ValidatorContainer

#: Findings that do not stop a certificate, each with its reason.
ACCEPTED: Final = MappingProxyType(
    {
        "pkix.invalid_domain_name_syntax": "pkilint wants two labels; RFC 5280 section 4.2.1.6 takes the preferred name "
        "syntax of RFC 1034 section 3.5, which has names of one. identifiers.py holds every name to that syntax.",
        "pkix.invalid_uri_syntax": "pkilint knows no SPIFFE IDs and no URNs, and wants two labels in hosts. identifiers.py "
        "holds every URI, pointers included, to RFC 3986.",
    }
)


@cache
def validator() -> ValidatorContainer:
    """pkilint's rules for certificates."""
    return certificate.create_pkix_certificate_validator_container(
        certificate.create_decoding_validators(name.ATTRIBUTE_TYPE_MAPPINGS, extension.EXTENSION_MAPPINGS),
        [
            certificate.create_issuer_validator_container([]),
            certificate.create_validity_validator_container(),
            certificate.create_subject_validator_container([]),
            certificate.create_extensions_validator_container([]),
            certificate.create_spki_validator_container([]),
        ],
    )


def findings(der: bytes) -> list[str]:
    """What stands against the certificate ``der``: each finding of at least a warning that is not accepted."""
    document = loader.load_certificate(der, "certificate")
    return [
        str(description)
        for result in validator().validate(document.root)
        for description in result.finding_descriptions
        if description.finding.severity <= ValidationFindingSeverity.WARNING
        and description.finding.code not in ACCEPTED
    ]
