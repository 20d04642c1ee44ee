package agent

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
)

// tokenCredential is the name of the token among the credentials that systemd hands
// a service (systemd.exec(5), LoadCredential=).
const tokenCredential = "imprint-token"

// ReadToken returns the token in a file, or, without one, that among the credentials
// of a service, which are in the directory credentials if that is not empty. It is
// never taken from an argument or the environment, which others can read. Without
// any it is empty. The error wraps [ErrConfig].
func ReadToken(path, credentials string) (string, error) {
	if path == "" {
		if credentials == "" {
			return "", nil
		}
		path = filepath.Join(credentials, tokenCredential)
		if _, err := os.Stat(path); errors.Is(err, fs.ErrNotExist) {
			return "", nil
		}
	}
	info, err := os.Stat(path)
	if err != nil {
		return "", fmt.Errorf("%w: token: %w", ErrConfig, err)
	}
	if !info.Mode().IsRegular() || info.Size() > 1024 {
		return "", fmt.Errorf("%w: token: %s is no file with a token", ErrConfig, path)
	}
	b, err := os.ReadFile(path)
	if err != nil {
		return "", fmt.Errorf("%w: token: %w", ErrConfig, err)
	}
	return strings.TrimSpace(string(b)), nil
}
