// An MQTT 3.1.1 broker for a fleet: passwords over TLS. SIGHUP reads the files again.

'use strict'

const { readFileSync } = require('fs')
const { join } = require('path')
const mosca = require('mosca')
const { authorizer } = require('./imprint.js')

const dir = __dirname
const config = JSON.parse(readFileSync(join(dir, 'config.json')))
const keyPath = join(dir, 'server.key')
const certPath = join(dir, 'server-chain.pem')

const server = new mosca.Server({
  interfaces: [{
    type: 'mqtts',
    port: config.passwordPort,
    host: config.bind || undefined,
    credentials: { keyPath, certPath, minVersion: 'TLSv1.2' }
  }],
  persistence: { factory: mosca.persistence.Memory },
  logger: { level: 50 }
})
const fleet = authorizer(server, dir) // before it listens
server.on('error', err => {
  console.error('broker: %s', err.message)
  process.exit(1)
})
server.on('clientError', () => {})
server.on('ready', () => console.log('listening at port %d', config.passwordPort))

process.on('SIGHUP', () => {
  try {
    fleet.reload()
    for (const listener of server.servers) {
      listener.setSecureContext({ key: readFileSync(keyPath), cert: readFileSync(certPath), minVersion: 'TLSv1.2' })
    }
    console.log('reloaded')
  } catch (err) {
    console.error('not reloaded, all is as before: %s', err.message)
  }
})
