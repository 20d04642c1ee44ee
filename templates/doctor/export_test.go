package doctor

// ReadPacket is readPacket, for its fuzz test.
var ReadPacket = readPacket

// Loopback, OldTLS and Everything are small readers with many ways to be wrong.
var (
	Loopback   = loopback
	OldTLS     = oldTLS
	Everything = everything
)
