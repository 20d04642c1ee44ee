// The authorizer of a fleet for Aedes 1 (Node.js 20.11 or later, aedes 1.1.3 or later).
//
// It reads the files beside which it was written:
//
//   imprint.json   the devices, their password verifiers and their rights
//   trust.pem      CAs of client certificates
//   crl.pem        revoked certificates, one list for each CA
//   server-chain.pem, server.key
//
// What it does not know it denies. Every option of Aedes that would allow something by
// default is replaced.

import { readFileSync } from 'node:fs'
import { join } from 'node:path'
import { constants, pbkdf2, timingSafeEqual, verify, X509Certificate } from 'node:crypto'
import { promisify } from 'node:util'

const stretch = promisify(pbkdf2)

// authorizer takes over the decisions of a broker. dir is the directory of the files.
//
// It returns
//   tls()     the options for tls.createServer and setSecureContext
//   reload()  reads the files again and ends the sessions that they do not allow; if
//             it throws, everything is as before
export function authorizer (broker, dir) {
  let state = load(dir)
  const sessions = new WeakMap() // by client: how it came in

  // current says whether somebody who came in would still be let in.
  function current (session) {
    const device = session && state.devices.get(session.id)
    if (!device) return false
    if (session.certificate) return device.certificate && state.revocations.allows(session.certificate)
    return device.password !== undefined && device.password.hash === session.hash
  }

  async function identify (client, username, password) {
    const { conn } = client
    if (!conn.encrypted) return null
    const peer = conn.getPeerX509Certificate()
    if (peer) {
      const id = conn.getPeerCertificate().subject?.CN
      if (!conn.authorized || typeof id !== 'string') return null
      if (username !== undefined && username !== null && username !== id) return null
      return client.id === id ? { id, certificate: peer.raw } : null
    }
    // Who is nobody takes as long as who has a wrong password.
    const known = state.devices.get(username)?.password
    const { iterations, salt, hash } = known ?? nobody
    const want = Buffer.from(hash, 'base64')
    const got = await stretch(password ?? '', Buffer.from(salt, 'base64'), iterations, want.length, 'sha512')
    return timingSafeEqual(got, want) && known && client.id === username ? { id: username, hash } : null
  }

  broker.authenticate = (client, username, password, callback) => {
    identify(client, username, password).then(
      session => {
        // The files may have been read again while the password was stretched.
        if (!current(session)) return false
        sessions.set(client, session)
        return true
      },
      () => false
    ).then(ok => setImmediate(callback, null, ok))
  }

  // A client becomes one of broker.clients here. Before, reload would not find it.
  broker.on('client', client => {
    if (!current(sessions.get(client))) client.close()
  })

  // deviceOf is the device of a client, as the files have it now.
  const deviceOf = client => state.devices.get(sessions.get(client)?.id)

  broker.authorizePublish = (client, packet, callback) => {
    // Without a client it is the will of one whose broker is gone.
    const device = client ? deviceOf(client) : state.devices.get(packet.clientId)
    const ok = device && isName(packet.topic) && device.pub.some(rule => covers(rule, packet.topic))
    callback(ok ? null : new Error('publish is not allowed'))
  }

  broker.authorizeSubscribe = (client, subscription, callback) => {
    const device = deviceOf(client)
    const ok = device && isFilter(subscription.topic) && device.sub.some(rule => covers(rule, subscription.topic))
    callback(null, ok ? subscription : null)
  }

  // Rights that a session had when it subscribed may be gone.
  broker.authorizeForward = (client, packet) =>
    deviceOf(client)?.sub.some(rule => covers(rule, packet.topic)) ? packet : null

  return {
    tls: () => state.tls,
    reload () {
      state = load(dir)
      for (const client of Object.values(broker.clients)) {
        if (current(sessions.get(client))) continue
        sessions.delete(client) // its will is not published
        client.close()
      }
    }
  }
}

const nobody = { iterations: 101, salt: 'AAAAAAAAAAAAAAAA', hash: Buffer.alloc(64).toString('base64') }

function load (dir) {
  const read = name => readFileSync(join(dir, name))
  const { format, devices } = JSON.parse(read('imprint.json'))
  if (format !== 'imprint-aedes/1') throw new Error('imprint.json: a format that is not known here')
  const byID = new Map()
  for (const d of devices) {
    if (d.state !== 'active') continue
    if (byID.has(d.id)) throw new Error(`imprint.json: ${d.id} is there twice`)
    byID.set(d.id, d)
  }
  const trust = read('trust.pem')
  return {
    devices: byID,
    revocations: new Revocations(trust, read('crl.pem')),
    tls: {
      ca: trust,
      cert: read('server-chain.pem'),
      key: read('server.key'),
      minVersion: 'TLSv1.2',
      // A session that is resumed would not be checked with the CAs of today.
      secureOptions: constants.SSL_OP_NO_TICKET
    }
  }
}

// isName says whether a text is a topic: no wildcards, no control characters. Aedes
// does not look at the topics of wills.
export const isName = text => typeof text === 'string' && text !== '' && !/[+#\p{Cc}]/u.test(text)

// isFilter says whether a text is a topic filter.
export const isFilter = text => typeof text === 'string' && text !== '' && !/\p{Cc}/u.test(text) &&
  text.split('/').every((level, i, all) => level === '+' || (level === '#' ? i === all.length - 1 : !/[+#]/.test(level)))

// covers says whether every topic of a filter is also one of a rule (MQTT 3.1.1 §4.7).
// A topic is a filter without wildcards.
export function covers (rule, filter) {
  if (/^[+#]/.test(rule) && filter.startsWith('$')) return false
  const outer = rule.split('/')
  const inner = filter.split('/')
  for (let i = 0; ; i++) {
    if (outer[i] === '#') return true
    if (inner[i] === '#' || (outer[i] !== '+' && outer[i] !== inner[i])) return false
    if (i + 1 === inner.length) return i + 1 === outer.length || (i + 2 === outer.length && outer[i + 1] === '#')
    if (i + 1 === outer.length) return false
  }
}

// Revocations are the CRLs of the CAs that are trusted. A certificate whose issuer has
// no CRL, or one that is past its nextUpdate, is refused.
//
// The crl option of Node's TLS is no choice: it makes OpenSSL ask for a CRL of every CA
// up to the root, which roots seldom sign.
export class Revocations {
  #lists = new Map() // by the DER name of the issuer

  constructor (trust, crls) {
    const cas = blocks(trust, 'CERTIFICATE').map(raw => ({ ...certificate(raw), key: new X509Certificate(raw).publicKey }))
    for (const raw of blocks(crls, 'X509 CRL')) {
      const list = revocationList(raw)
      if (!cas.some(ca => ca.subject === list.issuer && list.signedBy(ca.key))) throw new Error('crl.pem: a list that no CA of trust.pem has signed')
      this.#lists.set(list.issuer, list)
    }
    for (const ca of cas) { // what a revoked CA has signed counts for nothing
      if (ca.subject !== ca.issuer && this.#lists.get(ca.issuer)?.serials.has(ca.serial)) this.#lists.delete(ca.subject)
    }
  }

  // allows takes a certificate in DER whose chain has been verified.
  allows (raw) {
    const { issuer, serial } = certificate(raw)
    const list = this.#lists.get(issuer)
    return list !== undefined && Date.now() < list.nextUpdate && !list.serials.has(serial)
  }
}

// blocks returns the contents of a PEM file.
function blocks (pem, type) {
  const text = new RegExp(`-----BEGIN ${type}-----([^-]+)-----END ${type}-----`, 'g')
  return Array.from(pem.toString('latin1').matchAll(text), match => Buffer.from(match[1], 'base64'))
}

// elements splits DER (X.690 §8.1) into the elements that it is made of.
function elements (der) {
  const out = []
  for (let at = 0; at < der.length;) {
    let length = der[at + 1]
    let start = at + 2
    if (length > 127) {
      const octets = length & 127
      length = der.readUIntBE(start, octets)
      start += octets
    }
    const end = start + length
    if (!(end <= der.length)) throw new Error('DER: an element is cut short')
    out.push({ tag: der[at], whole: der.subarray(at, end), body: der.subarray(start, end) })
    at = end
  }
  return out
}

// certificate returns what names a certificate (RFC 5280 §4.1).
function certificate (raw) {
  const fields = elements(elements(elements(raw)[0].body)[0].body)
  if (fields[0].tag === 0xa0) fields.shift() // version
  const [serial, , issuer, , subject] = fields
  return { serial: serial.body.toString('hex'), issuer: issuer.whole.toString('hex'), subject: subject.whole.toString('hex') }
}

const hashes = new Map([
  ['2a8648ce3d040302', 'sha256'], ['2a8648ce3d040303', 'sha384'], ['2a8648ce3d040304', 'sha512'], // ECDSA
  ['2a864886f70d01010b', 'sha256'], ['2a864886f70d01010c', 'sha384'], ['2a864886f70d01010d', 'sha512'], // RSA
  ['2b6570', null] // Ed25519
])

// revocationList reads a CRL (RFC 5280 §5.1).
function revocationList (raw) {
  const [list, algorithm, signature] = elements(elements(raw)[0].body)
  const fields = elements(list.body)
  if (fields[0].tag === 0x02) fields.shift() // version
  const [, issuer, , nextUpdate, revoked] = fields
  const oid = elements(algorithm.body)[0].body.toString('hex')
  if (!hashes.has(oid)) throw new Error('crl.pem: a signature that is not known here')
  return {
    issuer: issuer.whole.toString('hex'),
    nextUpdate: date(nextUpdate),
    serials: new Set(revoked?.tag === 0x30 ? elements(revoked.body).map(entry => elements(entry.body)[0].body.toString('hex')) : []),
    signedBy: key => verify(hashes.get(oid), list.whole, key, signature.body.subarray(1))
  }
}

// date reads a UTCTime or a GeneralizedTime as milliseconds.
function date ({ tag, body }) {
  const text = body.toString('latin1')
  const [, year, rest] = /^(\d{2}|\d{4})(\d{10})Z$/.exec(text) ?? []
  if (!rest || (tag !== 0x17 && tag !== 0x18)) throw new Error('crl.pem: a list without nextUpdate')
  const [month, day, hour, minute, second] = rest.match(/\d\d/g).map(Number)
  const full = year.length === 4 ? Number(year) : Number(year) + (Number(year) < 50 ? 2000 : 1900)
  return Date.UTC(full, month - 1, day, hour, minute, second)
}
