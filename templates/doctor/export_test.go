package doctor

// ReadPacket is readPacket, for its fuzz test.
var ReadPacket = readPacket
