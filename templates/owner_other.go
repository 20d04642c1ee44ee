//go:build !unix

package templates

import (
	"io/fs"
	"os"
)

// owner says that files stay with whoever writes them: there is no such owner
// here.
func owner(*os.Root) (uid, gid int, give bool, err error) { return 0, 0, false, nil }

func ownedBy(fs.FileInfo, int, int) bool { return true }
