//go:build unix

package templates

import (
	"io/fs"
	"os"
	"syscall"
)

// owner returns the user and group that own the directory root, and whether
// files written here have to be given to them: only root can, and only root has
// to.
func owner(root *os.Root) (uid, gid int, give bool) {
	if os.Geteuid() != 0 {
		return 0, 0, false
	}
	info, err := root.Stat(".")
	if err != nil {
		return 0, 0, false
	}
	st, ok := info.Sys().(*syscall.Stat_t)
	if !ok {
		return 0, 0, false
	}
	return int(st.Uid), int(st.Gid), true
}

// ownedBy reports whether a file belongs to a user and a group.
func ownedBy(info fs.FileInfo, uid, gid int) bool {
	st, ok := info.Sys().(*syscall.Stat_t)
	return ok && int(st.Uid) == uid && int(st.Gid) == gid
}
