package main

import "crypto/tls"

func (l *load) hostile(*tls.Config) error { return nil }
