"""The rights of a fleet for aMQTT 0.12.1 (Python 3.11 or later).

The plugin reads the files of its directory:

    imprint.json   the devices, their password verifiers and their rights
    crl.pem        revoked certificates, one list for each CA

What it does not know it denies. It stands in for parts of the broker that decide before
they ask, so it holds to one version of aMQTT and starts with no other:

    * A connection is refused before it touches the session of its client identifier.
    * A last will is published without a question, so it is looked at when a client
      connects and when rights change.
    * Whoever connects is sent the retained messages of everybody's subscriptions.
"""

from __future__ import annotations

import asyncio
import base64
from dataclasses import dataclass
from datetime import datetime, timezone
import hashlib
import hmac
import json
import logging
from pathlib import Path
import signal
import unicodedata
from weakref import WeakSet

import amqtt
from amqtt import broker as amqtt_broker
from amqtt.contexts import Action
from amqtt.errors import MQTTError
from amqtt.mqtt.connack import NOT_AUTHORIZED, ConnackPacket
from amqtt.plugins.base import BaseAuthPlugin, BaseTopicPlugin

VERSION = "0.12.1"
logger = logging.getLogger(__name__)


class FleetPlugin(BaseAuthPlugin, BaseTopicPlugin):
    """Answers every question of the broker."""

    @dataclass
    class Config:
        """Where the files are."""

        directory: str

    def __init__(self, context):
        super().__init__(context)
        if amqtt.__version__ != VERSION:
            raise RuntimeError(f"aMQTT {amqtt.__version__}: this plugin is for {VERSION}")
        self.directory = Path(self.config.directory)
        self.fleet = Fleet(self.directory)
        self.broker = context._broker_instance
        self.handlers = WeakSet()
        plugin = self

        class Handler(amqtt_broker.BrokerProtocolHandler):
            """A handler that is made only for who may come in."""

            @classmethod
            async def init_from_connect(cls, reader, writer, plugins_manager, loop=None):
                handler, session = await super().init_from_connect(reader, writer, plugins_manager, loop)
                if not plugin.admit(session):
                    await ConnackPacket.build(0, NOT_AUTHORIZED).to_stream(writer)
                    raise MQTTError("not authorized")  # who called closes the connection
                plugin.handlers.add(handler)
                return handler, session

        amqtt_broker.BrokerProtocolHandler = Handler
        self.broker._publish_retained_messages_for_subscription = self.publish_retained
        self._publish_waiting = self.broker._publish_session_retained_messages
        self.broker._publish_session_retained_messages = self.publish_waiting

    def admit(self, session) -> bool:
        """Decide whether a client comes in. Nothing waits in here."""
        proof = self.fleet.identify(session)
        if proof is None or not self.fleet.may_have_will(session):
            return False
        session.imprint = proof
        old = self.broker.sessions.get(session.client_id)
        if old and not session.clean_session:
            old[0].imprint = proof  # the session that will be resumed
        return True

    async def authenticate(self, *, session):
        """Say what was decided before."""
        return self.fleet.current(session)

    async def topic_filtering(self, *, session=None, topic=None, action=None):
        """Decide about a message or a subscription."""
        return self.fleet.may(session, action, topic)

    async def publish_retained(self, subscription, session):
        """Send the retained messages of a subscription of this session, and no other's."""
        topic_filter, qos = subscription
        handler = self.broker._get_handler(session)
        if handler is None or all(s.client_id != session.client_id for s, _ in self.broker.subscriptions.get(topic_filter, [])):
            return
        for name, message in list(self.broker.retained_messages.items()):
            if self.broker._matches(name, topic_filter) and self.fleet.may(session, Action.RECEIVE, name):
                level = min(qos, message.qos or qos)
                asyncio.ensure_future(handler.mqtt_publish(name, message.data, level, retain=True))

    async def publish_waiting(self, session):
        """Send what has waited for a session, as far as it still may have it."""
        waiting = session.retained_messages
        for _ in range(waiting.qsize()):
            message = waiting.get_nowait()
            if self.fleet.may(session, Action.RECEIVE, message.topic):
                waiting.put_nowait(message)
        await self._publish_waiting(session)

    async def on_broker_post_start(self):
        """Read the files again at SIGHUP."""
        asyncio.get_running_loop().add_signal_handler(signal.SIGHUP, self.reload)
        logger.info("imprint: the broker serves")

    def reload(self):
        """Read the files again, and end the sessions that they do not allow."""
        try:
            self.fleet = Fleet(self.directory)
        except Exception as err:
            logger.error("imprint: not reloaded, all is as before: %s", err)
            return
        for handler in list(self.handlers):
            session = handler.session
            if session is None:
                continue
            if not self.fleet.current(session):
                session.imprint = None
                session.will_flag = False
                asyncio.ensure_future(self.end(handler))
            elif not self.fleet.may_have_will(session):
                session.will_flag = False
        logger.info("imprint: reloaded")

    async def end(self, handler):
        """End a session, as the broker does when another takes its place."""
        await handler.handle_connection_closed()
        await handler.stop()


class Fleet:
    """The files, as they were read."""

    def __init__(self, directory: Path):
        text = json.loads((directory / "imprint.json").read_bytes())
        if text["format"] != "imprint-amqtt/1":
            raise ValueError("imprint.json: a format that is not known here")
        self.devices = {d["id"]: d for d in text["devices"] if d["state"] == "active"}
        if len(self.devices) != len(text["devices"]):
            raise ValueError("imprint.json: a device is there twice")
        self.lists = dict(revocation_list(der) for der in blocks((directory / "crl.pem").read_bytes(), b"X509 CRL"))

    def identify(self, session):
        """Return what a client has shown of its device, or None."""
        tls = session.ssl_object
        if tls is None:
            return None
        raw = tls.getpeercert(binary_form=True)
        if raw:
            names = [v for rdn in tls.getpeercert()["subject"] for k, v in rdn if k == "commonName"]
            device = self.devices.get(names[0]) if len(names) == 1 else None
            if device is None or session.client_id != names[0] or session.username not in (None, names[0]):
                return None
            return ("certificate", raw) if device["certificate"] and self.good(raw) else None
        # Who is nobody takes as long as who has a wrong password.
        device = self.devices.get(session.username) if session.client_id == session.username else None
        known = (device or {}).get("password")
        verifier = known or {"iterations": 101, "salt": "AAAAAAAAAAAAAAAA", "hash": "A" * 86 + "=="}
        want = base64.b64decode(verifier["hash"])
        password = (session.password or "").encode()
        got = hashlib.pbkdf2_hmac("sha512", password, base64.b64decode(verifier["salt"]), verifier["iterations"], len(want))
        return ("password", verifier["hash"]) if hmac.compare_digest(got, want) and known else None

    def current(self, session) -> bool:
        """Say whether a client that came in would still be let in."""
        kind, value = getattr(session, "imprint", None) or (None, None)
        device = self.devices.get(session.client_id)
        if device is None or kind is None:
            return False
        if kind == "certificate":
            return device["certificate"] and self.good(value)
        return (device.get("password") or {}).get("hash") == value

    def good(self, raw: bytes) -> bool:
        """Say whether a certificate is on no list; without a list in date it is not good."""
        issuer, serial = certificate(raw)
        until, serials = self.lists.get(issuer, (None, ()))
        return until is not None and datetime.now(timezone.utc) < until and serial not in serials

    def may(self, session, action, topic) -> bool:
        """Decide about a message or a subscription."""
        if session is None or not getattr(session, "imprint", None) or not topic:
            return False
        device = self.devices.get(session.client_id)
        if device is None or not (is_filter(topic) if action == Action.SUBSCRIBE else is_name(topic)):
            return False
        return any(covers(rule, topic) for rule in device["pub" if action == Action.PUBLISH else "sub"])

    def may_have_will(self, session) -> bool:
        """Decide about the last will of a client."""
        if not session.will_flag:
            return True
        topic = session.will_topic or ""
        device = self.devices.get(session.client_id)
        # The broker refuses publications to $... otherwise.
        return device is not None and is_name(topic) and topic[0] != "$" and any(covers(rule, topic) for rule in device["pub"])


def is_text(text: str) -> bool:
    """Say whether a text has no control characters."""
    return text != "" and not any(unicodedata.category(c) == "Cc" for c in text)


def is_name(text: str) -> bool:
    """Say whether a text is a topic."""
    return is_text(text) and "+" not in text and "#" not in text


def is_filter(text: str) -> bool:
    """Say whether a text is a topic filter."""
    levels = text.split("/")
    return is_text(text) and all(
        level == "+" or (i == len(levels) - 1 if level == "#" else "+" not in level and "#" not in level)
        for i, level in enumerate(levels)
    )


def covers(rule: str, topic_filter: str) -> bool:
    """Say whether every topic of a filter is also one of a rule (MQTT 3.1.1 §4.7).

    A topic is a filter without wildcards.
    """
    if rule[0] in "+#" and topic_filter[0] == "$":
        return False
    outer, inner = rule.split("/"), topic_filter.split("/")
    for i, level in enumerate(outer):
        if level == "#":
            return True
        if i == len(inner) or inner[i] == "#" or level not in ("+", inner[i]):
            return False
        if i + 1 == len(inner) and outer[i + 1 :] == ["#"]:
            return True
    return len(outer) == len(inner)


def blocks(pem: bytes, kind: bytes):
    """Return the contents of a PEM file."""
    for part in pem.split(b"-----BEGIN " + kind + b"-----")[1:]:
        yield base64.b64decode(part.split(b"-----END ")[0])


def elements(der: bytes):
    """Split DER (X.690 §8.1) into the elements that it is made of: tag, whole, body."""
    out, at = [], 0
    while at < len(der):
        length, start = der[at + 1], at + 2
        if length > 127:
            octets = length & 127
            length, start = int.from_bytes(der[start : start + octets], "big"), start + octets
        if start + length > len(der):
            raise ValueError("DER: an element is cut short")
        out.append((der[at], der[at : start + length], der[start : start + length]))
        at = start + length
    return out


def certificate(raw: bytes):
    """Return issuer and serial number of a certificate (RFC 5280 §4.1)."""
    fields = elements(elements(elements(raw)[0][2])[0][2])
    if fields[0][0] == 0xA0:
        fields = fields[1:]  # version
    return fields[2][1], fields[0][2]


def revocation_list(raw: bytes):
    """Return issuer, and nextUpdate and serial numbers, of a CRL (RFC 5280 §5.1).

    Its signature was checked when the file was written, by who writes imprint.json too.
    """
    fields = elements(elements(elements(raw)[0][2])[0][2])
    if fields[0][0] == 0x02:
        fields = fields[1:]  # version
    _, issuer, _, until = fields[:4]
    if until[0] not in (0x17, 0x18):
        raise ValueError("crl.pem: a list without nextUpdate")
    date = datetime.strptime(until[2].decode(), "%y%m%d%H%M%SZ" if until[0] == 0x17 else "%Y%m%d%H%M%SZ")
    revoked = fields[4][2] if len(fields) > 4 and fields[4][0] == 0x30 else b""
    serials = frozenset(elements(entry[2])[0][2] for entry in elements(revoked))
    return issuer[1], (date.replace(tzinfo=timezone.utc), serials)
