// The authorizer of a fleet for Mosca 2.8 (Node.js 16.9 or later).
//
// It reads credentials.json, beside which it was written. That file has the form of
// Mosca's own, with the rights in two more fields: Mosca's globs cannot say what a topic
// policy says, so there they match nothing.
//
// What it does not know it denies.

'use strict'

const { readFileSync } = require('fs')
const { join } = require('path')
const { pbkdf2, timingSafeEqual } = require('crypto')

// authorizer takes over the decisions of a mosca.Server. dir is the directory of the
// file. It returns reload(), which reads the file again and ends the sessions that it
// does not allow; if it throws, everything is as before.
function authorizer (server, dir) {
  let devices = load(dir)
  const sessions = new WeakMap() // by client: how it came in

  const current = session => session !== undefined && devices.get(session.id)?.hash === session.hash

  server.authenticate = (client, username, password, callback) => {
    // Who is nobody takes as long as who has a wrong password.
    const known = client.connection.stream.encrypted ? devices.get(username) : undefined
    const { salt, hash } = known ?? nobody
    pbkdf2(password ?? '', Buffer.from(salt, 'base64'), 10_000, 128, 'sha1', (err, got) => {
      if (err) return callback(err)
      const session = { id: username, hash }
      // The file may have been read again in the meantime.
      const ok = timingSafeEqual(got, Buffer.from(hash, 'base64')) && known !== undefined && client.id === username && current(session)
      if (ok) sessions.set(client, session)
      callback(null, ok)
    })
  }

  // A client becomes one of server.clients here. Before, reload would not find it.
  server.on('clientConnected', client => {
    if (!current(sessions.get(client))) client.close(null, 'shut out')
  })

  // deviceOf is the device of a client, as the file has it now.
  const deviceOf = client => devices.get(sessions.get(client)?.id)

  server.authorizePublish = (client, topic, payload, callback) =>
    callback(null, isName(topic) && Boolean(deviceOf(client)?.pub.some(rule => covers(rule, topic))))

  server.authorizeSubscribe = (client, topic, callback) =>
    callback(null, isFilter(topic) && Boolean(deviceOf(client)?.sub.some(rule => covers(rule, topic))))

  // A session that is resumed has the subscriptions of before, and Mosca does not ask
  // about them.
  server.authorizeForward = (client, packet, callback) =>
    callback(null, Boolean(deviceOf(client)?.sub.some(rule => covers(rule, packet.topic))))

  return {
    reload () {
      devices = load(dir)
      for (const client of Object.values(server.clients)) {
        if (current(sessions.get(client))) continue
        sessions.delete(client)
        client.close(null, 'shut out') // its will is not published
      }
    }
  }
}

const nobody = { salt: '', hash: Buffer.alloc(128).toString('base64') }

const load = dir => new Map(Object.entries(JSON.parse(readFileSync(join(dir, 'credentials.json')))))

// isName says whether a text is a topic: no wildcards, no control characters. Mosca does
// not look.
const isName = text => typeof text === 'string' && text !== '' && !/[+#\p{Cc}]/u.test(text)

// isFilter says whether a text is a topic filter.
const isFilter = text => typeof text === 'string' && text !== '' && !/\p{Cc}/u.test(text) &&
  text.split('/').every((level, i, all) => level === '+' || (level === '#' ? i === all.length - 1 : !/[+#]/.test(level)))

// covers says whether every topic of a filter is also one of a rule (MQTT 3.1.1 §4.7).
// A topic is a filter without wildcards.
function covers (rule, filter) {
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

module.exports = { authorizer, covers, isName, isFilter }
