"""Write the names of the settings into the schema of the chart's values: `make settings-page`."""

import json

from pydantic import SecretStr

from service.settings import Settings
from tests.support.paths import ROOT
from tests.support.settings_page import TYPES, setting_type

SCHEMA = ROOT / "deploy/helm/generation/values.schema.json"
# The chart sets these itself: addresses, and the paths of what it mounts.
OWN = {
    "LISTEN_ADDRESS",
    "ADMIN_ADDRESS",
    "HTTP_ADDRESS",
    "AUTH_TOKENS_FILE",
    "CALLER_LIMITS_FILE",
    "TLS_CERT_FILE",
    "TLS_KEY_FILE",
    "TLS_CLIENT_CA_FILE",
}


def replaced(text: str) -> str:
    """Return the schema with the names of the settings replaced."""
    schema = json.loads(text)
    secret = [
        name.upper()
        for name, field in Settings.model_fields.items()
        if setting_type(field) == TYPES[SecretStr]
    ]
    names = [name.upper() for name in Settings.model_fields]
    plain = [name for name in names if name not in OWN and name not in secret]
    for group, members in (("setting", plain), ("secret", secret)):
        rule = {"$ref": f"#/definitions/{group}"}
        schema["properties"][f"{group}s"]["properties"] = dict.fromkeys(members, rule)
    return json.dumps(schema, indent=2) + "\n"


if __name__ == "__main__":
    SCHEMA.write_text(replaced(SCHEMA.read_text()))
