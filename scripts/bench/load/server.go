package main

import (
	"crypto/rand"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"sync"
	"syscall"
	"time"
)

// serving is a server that runs as a child.
type serving struct {
	cmd  *exec.Cmd
	addr string

	once sync.Once
	err  error
}

var servingLine = regexp.MustCompile(`msg=serving https=(\S+)`)

// start runs the server of a fleet and waits until it serves. The passphrase is in
// the file pass beside the fleet, the log goes to serve.log there.
func start(fleet, program string) (*serving, error) {
	beside := filepath.Dir(filepath.Clean(fleet))
	log := filepath.Join(beside, "serve.log")
	out, err := os.Create(log)
	if err != nil {
		return nil, err
	}
	defer func() { _ = out.Close() }()
	cmd := exec.Command(program, "--fleet", fleet, "--passphrase-file", filepath.Join(beside, "pass"), "serve", "--listen", "127.0.0.1:0")
	cmd.Stderr = out
	if err := cmd.Start(); err != nil {
		return nil, err
	}
	s := &serving{cmd: cmd}
	for range 3000 {
		text, err := os.ReadFile(log)
		if err != nil {
			s.end()
			return nil, err
		}
		if m := servingLine.FindSubmatch(text); m != nil {
			s.addr = string(m[1])
			return s, nil
		}
		time.Sleep(10 * time.Millisecond)
	}
	s.end()
	return nil, fmt.Errorf("the server does not serve: see %s", log)
}

// wait returns how the server has ended, once it has.
func (s *serving) wait() error {
	s.once.Do(func() { s.err = s.cmd.Wait() })
	return s.err
}

// end kills a server that still runs.
func (s *serving) end() {
	_ = s.cmd.Process.Kill()
	_ = s.wait()
}

// fill writes until there is no room on the disk; the function it returns gives
// the room back.
func fill(path string) (empty func(), err error) {
	f, err := os.Create(path)
	if err != nil {
		return nil, err
	}
	empty = func() { _ = os.Remove(path) }
	for _, size := range []int{1 << 20, 4 << 10} {
		b := make([]byte, size)
		_, _ = rand.Read(b)
		for {
			if _, err = f.Write(b); err != nil {
				break
			}
		}
		if !errors.Is(err, syscall.ENOSPC) {
			empty()
			return nil, errors.Join(err, f.Close())
		}
	}
	return empty, f.Close()
}
