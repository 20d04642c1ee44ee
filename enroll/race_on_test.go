//go:build race

package enroll_test

// raceEnabled: under the race detector less is done of what takes long.
const raceEnabled = true
