//go:build !unix

package targettest

import "testing"

// testPlanted has nothing to plant here: pipes and links of this kind are Unix.
func testPlanted(*testing.T, Case) {}
