// Package targettest is the contract of [templates.Target] as a test, and the
// fleets and certificates that tests of exports need.
package targettest
