// Package remote is an [inventory.Store] at a distance of one Unix socket. The
// process that holds a store, as a server does, serves it; another one on the same
// machine works with it as if it had opened it itself. So every command works
// beside a running server, and there is one way to change a fleet and not two.
//
// Whoever may open the socket may do everything with the store: the socket is as
// well guarded as the file of the store, and by the same means. Records travel in
// their stored form, so what passes is what the file holds: hashes of passwords and
// tokens, and no password, token or private key.
//
// Each call is a connection. One for reading holds [inventory.Store.Read] open on
// the other side while queries come, so all of them see one moment. Sequences come
// in pages, and only when the caller wants the next one; between two pages other
// queries can be asked. Whoever asks nothing for 30 s loses the reading.
package remote
