"""Holds an export and the commands of its README to the model of the AWS IoT API that
botocore carries: every call that they amount to has to be one that the API takes.
Prints how much was checked. Usage: model.py DIRECTORY"""

import json
import pathlib
import re
import sys

import botocore.session
from botocore import xform_name
from botocore.validate import ParamValidator

where = pathlib.Path(sys.argv[1])
session = botocore.session.get_session()
models = {name: session.get_service_model(name) for name in ("iot", "iot-data")}
checked = 0


def fail(text):
    sys.exit(f"model.py: {text}")


def limits(value, shape, path):
    """What botocore leaves to the service: patterns, lengths, enumerations."""
    if shape.type_name == "structure":
        for name, v in value.items():
            limits(v, shape.members[name], f"{path}.{name}")
    elif shape.type_name == "map":
        for k, v in value.items():
            limits(k, shape.key, f"{path} key")
            limits(v, shape.value, f"{path}.{k}")
    elif shape.type_name == "string":
        m = shape.metadata
        if not m.get("min", 0) <= len(value) <= m.get("max", sys.maxsize):
            fail(f"{path}: {len(value)} characters, the model says {m}")
        if "pattern" in m and not re.fullmatch(m["pattern"], value):
            fail(f"{path}: {value!r} is not {m['pattern']}")
        if "enum" in m and value not in m["enum"]:
            fail(f"{path}: {value!r} is none of {m['enum']}")


def call(operation, **params):
    global checked
    shape = models["iot"].operation_model(operation).input_shape
    report = ParamValidator().validate(params, shape)
    if report.has_errors():
        fail(f"{operation}: {report.generate_report()}")
    limits(params, shape, operation)
    checked += 1


policies = set()
for f in sorted(where.glob("policy-*.json")):
    text = f.read_text().replace("REGION:ACCOUNT", "ap-southeast-1:123456789012")
    document = json.loads(text)
    if document["Version"] != "2012-10-17" or not document["Statement"]:
        fail(f"{f.name} has no version or no statement")
    if len(text) > 2048:
        fail(f"{f.name} has {len(text)} bytes")
    name = "imprint-" + f.name.removeprefix("policy-").removesuffix(".json")
    call("CreatePolicy", policyName=name, policyDocument=text)
    policies.add(name)

body = (where / "provisioning-template.json").read_text()
template = json.loads(body)
things = 0
for line in (where / "things.jsonl").read_text().splitlines():
    given = json.loads(line)
    call("RegisterThing", templateBody=body, parameters=given)
    if set(given) - set(template["Parameters"]):
        fail(f"parameters {set(given) - set(template['Parameters'])} are not in the template")

    def fill(v):
        if isinstance(v, dict) and set(v) == {"Ref"}:
            p = template["Parameters"][v["Ref"]]
            return given[v["Ref"]] if v["Ref"] in given else p["Default"]
        return {k: fill(x) for k, x in v.items()} if isinstance(v, dict) else v

    for r in template["Resources"].values():
        p = fill(r["Properties"])
        if r["Type"] == "AWS::IoT::Thing":
            call("CreateThing", thingName=p["ThingName"], thingTypeName=p["ThingTypeName"], attributePayload={"attributes": p["AttributePayload"]})
        elif r["Type"] == "AWS::IoT::Certificate":
            call("RegisterCertificate", certificatePem=p["CertificatePem"], caCertificatePem=p["CACertificatePem"], status=p["Status"])
        elif r["Type"] == "AWS::IoT::Policy":
            call("AttachPolicy", policyName=p["PolicyName"], target="arn:aws:iot:eu-central-1:123456789012:cert/x")
            if p["PolicyName"] not in policies:
                fail(f"{p['PolicyName']} is in no file")
        else:
            fail(r["Type"])
    things += 1

commands = 0
for service, verb, rest in re.findall(r"aws (iot|iot-data) ([a-z][a-z-]+)([^`\n]*)", (where / "README.md").read_text()):
    names = {xform_name(o, "-"): o for o in models[service].operation_names}
    if verb not in names:
        fail(f"README: there is no aws {service} {verb}")
    shape = models[service].operation_model(names[verb]).input_shape
    known = {xform_name(m, "-") for m in shape.members} | {"query", "output"}
    for option in re.findall(r"(?<!\S)--([a-z-]+)", rest.split("||")[0].split("#")[0]):
        if option not in known:
            fail(f"README: aws {service} {verb} has no --{option}, but {sorted(known)}")
    commands += 1

print(f"{checked} calls of {things} certificates and {len(policies)} policies, {commands} commands")
