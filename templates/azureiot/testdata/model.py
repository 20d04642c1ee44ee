"""Holds an export to the models of Azure's SDKs: each line and resource is read as the
SDK's class and written again, and has to be the same. Prints how much was checked.
Usage: model.py DIRECTORY"""

import json
import pathlib
import sys

import azure.mgmt.eventgrid.models as grid
from azure.iot.hub.protocol.models import ExportImportDevice

where = pathlib.Path(sys.argv[1])
form = json.loads((where / "export.json").read_text())["form"]
checked = 0


def fail(text):
    sys.exit(f"model.py: {text}")


def same(cls, value, what):
    """A key that the class does not know is lost on the way."""
    global checked
    again = cls.deserialize(value).serialize()
    if again != value:
        fail(f"{what}: {cls.__name__} makes {again} of {value}")
    checked += 1
    return cls.deserialize(value)


def lines(name):
    return [json.loads(line) for line in (where / name).read_text().splitlines()]


def enumerated(value, enum):
    if value not in [x.value for x in enum]:
        fail(f"{value} is none of {enum}")


if form == "iothub":
    for line in lines("devices.txt"):
        same(ExportImportDevice, line, line["id"])
elif form == "eventgrid":
    classes = {"caCertificates": grid.CaCertificate, "clientGroups": grid.ClientGroup, "topicSpaces": grid.TopicSpace, "permissionBindings": grid.PermissionBinding}
    for r in json.loads((where / "namespace.json").read_text())["resources"]:
        m = same(classes[r["type"].removeprefix("Microsoft.EventGrid/namespaces/")], {"properties": r["properties"]}, r["name"])
        if isinstance(m, grid.PermissionBinding):
            enumerated(m.permission, grid.PermissionType)
    for line in lines("clients.jsonl"):
        m = same(grid.Client, {"properties": line["properties"]}, line["name"])
        enumerated(m.state, grid.ClientState)
        enumerated(m.client_certificate_authentication.validation_scheme, grid.ClientCertificateValidationScheme)
else:
    fail(f"there is no model of the form {form}")
print(f"{checked} resources")
