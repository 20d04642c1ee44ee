package boltstore

import (
	"bytes"
	"os"
	"strconv"

	"golang.org/x/sys/unix"
)

// trim lets go of the pages of the database that are mapped into the process, if
// there are many. They stay in the kernel's cache, and come back when they are
// looked at again. Without it, whoever reads the whole fleet once holds all of the
// file until it ends: memory that grows with the fleet.
//
// It is an advice on a file mapping, so it changes nothing that anyone reads. The
// mapping must not move meanwhile: it does not while the file is smaller than
// initialMap, and a larger file is left alone.
func (s *Store) trim() {
	if int64(mappedPages())*int64(os.Getpagesize()) < s.cfg.Mapped {
		return
	}
	info, err := s.cfg.Dir.Stat(databaseFile)
	if err != nil || info.Size() >= initialMap || mapSize() == 0 {
		return
	}
	_, _, _ = unix.Syscall(unix.SYS_MADVISE, s.db.Info().Data, uintptr(info.Size()), unix.MADV_DONTNEED)
}

// mappedPages returns how many pages of files the process has mapped: the third
// number of /proc/self/statm (proc(5)). Zero means that it is not known.
func mappedPages() int {
	b, err := os.ReadFile("/proc/self/statm")
	fields := bytes.Fields(b)
	if err != nil || len(fields) < 3 {
		return 0
	}
	n, err := strconv.Atoi(string(fields[2]))
	if err != nil {
		return 0
	}
	return n
}
