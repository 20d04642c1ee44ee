package remote

import (
	"errors"
	"net"
	"os"

	"golang.org/x/sys/unix"
)

// checkPeer lets through who runs as the same user, or as root: those who could
// open the store's files as well.
func checkPeer(c net.Conn) error {
	u, ok := c.(*net.UnixConn)
	if !ok {
		return errors.New("not a Unix socket")
	}
	raw, err := u.SyscallConn()
	if err != nil {
		return err
	}
	var cred *unix.Ucred
	var credErr error
	err = raw.Control(func(fd uintptr) { cred, credErr = unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED) })
	if err := errors.Join(err, credErr); err != nil {
		return err
	}
	if !heard(int(cred.Uid), os.Geteuid()) {
		return errors.New("another user")
	}
	return nil
}
