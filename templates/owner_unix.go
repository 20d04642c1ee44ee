//go:build unix

package templates

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"syscall"
)

// owner returns the user and group that own the directory root, and whether
// files written here have to be given to them: only root can, and only root has
// to. That it cannot be found out is an error: a broker that may not read its
// files would find out for itself.
func owner(root *os.Root) (uid, gid int, give bool, err error) {
	if os.Geteuid() != 0 {
		return 0, 0, false, nil
	}
	info, err := root.Stat(".")
	if err != nil {
		return 0, 0, false, fmt.Errorf("finding the owner of the directory: %w", err)
	}
	st, ok := info.Sys().(*syscall.Stat_t)
	if !ok {
		return 0, 0, false, errors.New("finding the owner of the directory: it has none")
	}
	return int(st.Uid), int(st.Gid), true, nil
}

// ownedBy reports whether a file belongs to a user and a group.
func ownedBy(info fs.FileInfo, uid, gid int) bool {
	st, ok := info.Sys().(*syscall.Stat_t)
	return ok && int(st.Uid) == uid && int(st.Gid) == gid
}
