package durable

// ExchangeSlowly is the way that Swap takes on a file system that cannot exchange
// two names.
func (d *Dir) ExchangeSlowly(a, b string) error { return exchangeSlowly(d.root, a, b) }
