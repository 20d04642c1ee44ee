// An MQTT 3.1.1 broker for a fleet: one port for certificates, one for passwords.
// SIGHUP reads the files again.

import { readFileSync } from 'node:fs'
import { join } from 'node:path'
import { createServer } from 'node:tls'
import { Aedes } from 'aedes'
import { authorizer } from './imprint.mjs'

const dir = import.meta.dirname
const config = JSON.parse(readFileSync(join(dir, 'config.json')))

const broker = await Aedes.createBroker({ connectTimeout: 10_000, maxClientsIdLength: 64 })
broker.on('error', err => console.error('broker: %s', err.message))

const fleet = authorizer(broker, dir)
const options = { handshakeTimeout: 10_000 }
const servers = [
  [config.certificatePort, { ...options, requestCert: true, rejectUnauthorized: true }],
  [config.passwordPort, options]
].map(([port, more]) => {
  const server = createServer({ ...fleet.tls(), ...more }, broker.handle)
  server.listen(port, config.bind || undefined, () => console.log('listening at port %d', port))
  return server
})

process.on('SIGHUP', () => {
  try {
    fleet.reload()
    for (const server of servers) server.setSecureContext(fleet.tls())
    console.log('reloaded')
  } catch (err) {
    console.error('not reloaded, all is as before: %s', err.message)
  }
})
