//go:build !race

package ca_test

// raceEnabled: the race detector makes time limits meaningless.
const raceEnabled = false
