package main

import (
	"crypto/tls"
	"fmt"
	"os"
	"strings"
	"time"
)

// maxIdleMemory is what a server with all its idle connections may take, in bytes.
const maxIdleMemory = 400e6

// idle opens connections and leaves them alone, while others enroll.
func (l *load) idle(config *tls.Config) error {
	devices, err := makeDevices(l.fleet, fmt.Sprintf("idle-%d", time.Now().UnixNano()), 3000)
	if err != nil {
		return err
	}
	before := memory(l.pid)
	conns, err := dialAll(l.addr, config, l.n, nobody)
	defer closeAll(conns)
	if err != nil {
		return err
	}
	after := memory(l.pid)
	if err := l.enroll(fmt.Sprintf("enroll, %d others idle", l.n), devices, config, limit{}); err != nil {
		return err
	}
	most := max(after, memory(l.pid))
	fmt.Printf("%d idle TLS connections: %.0f MB, while others enroll %.0f MB%s (%.0f MB without them)\n",
		l.n, float64(after)/1e6, float64(most)/1e6, verdict(float64(most)/1e6, maxIdleMemory/1e6), float64(before)/1e6)
	return nil
}

// memory is the resident memory of a process, in bytes.
func memory(pid string) int {
	b, err := os.ReadFile("/proc/" + pid + "/status")
	if err != nil {
		return 0
	}
	for line := range strings.Lines(string(b)) {
		if rest, ok := strings.CutPrefix(line, "VmRSS:"); ok {
			n := 0
			_, _ = fmt.Sscanf(rest, "%d", &n)
			return n << 10
		}
	}
	return 0
}
