// Command load puts an enrollment server under load, for scripts/bench/serve and
// scripts/bench/serve-kill.
//
//	load enroll  FLEET ADDR PID N CLIENTS   EST simpleenroll with one-time tokens, keep-alive
//	load renew   FLEET ADDR PID N CLIENTS   simplereenroll over mutual TLS, keep-alive, then with new connections
//	load ocsp    FLEET HTTP,ADDR PID N CLIENTS   OCSP over HTTP: signed for each request, then before
//	load idle    FLEET ADDR PID N           N connections that do nothing, and enrollments meanwhile
//	load hostile FLEET ADDR PID N           N requests of each kind of those who have no right
//	load kill    FLEET PROGRAM N            kill -9 at random under 64 clients, N times
//	load term    FLEET PROGRAM N            SIGTERM likewise
//	load full    FLEET PROGRAM              a full disk: the fleet is on a small file system
//
// The server's CPU is what /proc says of PID. ISSUE is parsing and checking a request
// and x509.CreateCertificate, on one core, in the same run.
package main

import (
	"errors"
	"fmt"
	"os"
	"strconv"
)

var errUsage = errors.New("usage: load enroll|renew|ocsp|idle|hostile FLEET ADDR PID N [CLIENTS], load kill|term FLEET PROGRAM N, load full FLEET PROGRAM")

func main() {
	err := run(os.Args[1:])
	switch {
	case errors.Is(err, errUsage):
		fmt.Fprintln(os.Stderr, err)
		os.Exit(64)
	case err != nil:
		fmt.Fprintln(os.Stderr, "load:", err)
		os.Exit(1)
	}
}

func run(args []string) error {
	if len(args) < 3 {
		return errUsage
	}
	mode, fleet, target, rest := args[0], args[1], args[2], args[3:]
	switch {
	case mode == "full" && len(rest) == 0:
		return fullDisk(fleet, target)
	case (mode == "kill" || mode == "term") && len(rest) == 1:
		times, err := strconv.Atoi(rest[0])
		if err != nil {
			return errUsage
		}
		how := killStop
		if mode == "term" {
			how = termStop
		}
		return faults(fleet, target, times, how)
	case len(rest) < 2:
		return errUsage
	}
	l := &load{fleet: fleet, addr: target, pid: rest[0], clients: 16}
	var err error
	if l.n, err = strconv.Atoi(rest[1]); err != nil {
		return errUsage
	}
	if len(rest) > 2 {
		if l.clients, err = strconv.Atoi(rest[2]); err != nil {
			return errUsage
		}
	}
	return l.run(mode)
}
