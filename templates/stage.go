package templates

import (
	"bufio"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"hash"
	"io/fs"
	"os"
	"slices"

	"github.com/imprint-iot/imprint/inventory/durable"
)

const (
	stageName = ".imprint-new"  // where an export is made
	lockName  = ".imprint.lock" // held while it is made
)

// A stage is a directory in the export directory, where the new files wait until
// they have been checked.
type stage struct {
	dst   *durable.Dir
	dir   *durable.Dir // dst/.imprint-new
	root  *os.Root     // of dst, for chown
	plan  []PlanFile
	files map[string]*stagedFile
}

// A stagedFile is one new file. The first error sticks and is reported by
// commit.
type stagedFile struct {
	file *durable.File
	buf  *bufio.Writer
	hash hash.Hash
	n    int64
	err  error
}

// Write implements [io.Writer]. It always succeeds: what goes wrong is kept for
// commit, so that a target renders without looking.
func (f *stagedFile) Write(b []byte) (int, error) {
	if f.err == nil {
		_, f.err = f.buf.Write(b)
		f.n += int64(len(b))
	}
	return len(b), nil
}

// hashed writes what leaves the buffer to the file and into the hash.
type hashed struct{ *stagedFile }

func (h hashed) Write(b []byte) (int, error) {
	_, _ = h.hash.Write(b) // never fails, says hash.Hash
	return h.file.Write(b)
}

// newStage makes an empty stage and opens the files of the plan in it. What an
// export that was cut short has left there is removed.
func newStage(dst *durable.Dir, plan []PlanFile) (_ *stage, err error) {
	s := &stage{dst: dst, root: dst.Root(), plan: plan, files: make(map[string]*stagedFile)}
	if err := dst.RemoveAll(stageName); err != nil {
		return nil, err
	}
	if s.dir, err = dst.Mkdir(stageName); err != nil {
		return nil, err
	}
	for _, p := range plan {
		if err := s.create(p.Name, p.Mode); err != nil {
			s.discard()
			return nil, err
		}
	}
	return s, nil
}

func (s *stage) create(name string, mode fs.FileMode) error {
	file, err := s.dir.Create(name, mode)
	if err != nil {
		return err
	}
	f := &stagedFile{file: file, hash: sha256.New()}
	f.buf = bufio.NewWriterSize(hashed{f}, 1<<16)
	s.files[name] = f
	return nil
}

// commit makes the files of the plan whole and durable in the stage.
func (s *stage) commit() error {
	uid, gid, give, err := owner(s.root)
	if err != nil {
		return err
	}
	for _, p := range s.plan {
		if err := s.commitFile(p.Name, uid, gid, give); err != nil {
			return err
		}
	}
	return nil
}

func (s *stage) commitFile(name string, uid, gid int, give bool) error {
	f := s.files[name]
	if err := errors.Join(f.err, f.buf.Flush()); err != nil {
		return fmt.Errorf("writing %s: %w", name, err)
	}
	if err := f.file.Commit(); err != nil {
		return fmt.Errorf("writing %s: %w", name, err)
	}
	if give {
		if err := s.root.Lchown(stageName+"/"+name, uid, gid); err != nil {
			return fmt.Errorf("giving %s to the owner of %s: %w", name, s.dst.Path(), err)
		}
	}
	return nil
}

// fs is the stage as the target's parser will see the export.
func (s *stage) fs() fs.FS { return s.dir.FS() }

// putInPlace moves the files that are new or other than before into the export
// directory, in the order of the plan.
func (s *stage) putInPlace(sum *Summary) error {
	for _, p := range s.plan {
		f := s.files[p.Name]
		info := FileInfo{Name: p.Name, SHA256: hex.EncodeToString(f.hash.Sum(nil)), Bytes: f.n, Mode: p.Mode}
		if !s.unchanged(info) {
			info.Changed = true
			sum.Changed = sum.Changed || !p.Doc
			if err := s.dst.Swap(stageName+"/"+p.Name, p.Name); err != nil {
				return fmt.Errorf("putting %s in place: %w", p.Name, err)
			}
		}
		sum.Files = append(sum.Files, info)
	}
	return nil
}

// unchanged reports whether the export directory has this very file already, with
// its mode and owner. Anything doubtful is a change.
func (s *stage) unchanged(info FileInfo) bool {
	have, err := s.root.Lstat(info.Name)
	if err != nil || have.Mode() != info.Mode || have.Size() != info.Bytes {
		return false
	}
	if uid, gid, give, err := owner(s.root); err != nil || give && !ownedBy(have, uid, gid) {
		return false
	}
	sum, _, err := HashFile(s.dst.FS(), info.Name)
	return err == nil && sum == info.SHA256
}

// writeManifest writes the manifest and its signature, unless those that are
// there say the same. It returns the manifest that was there, or nil.
func (s *stage) writeManifest(m *Manifest, o Options) (*Manifest, error) {
	old, text, err := readManifest(s.dst.FS())
	if err == nil && s.sameManifest(m, old, text, o) {
		return old, nil
	}
	next, err := m.encode()
	if err != nil {
		return nil, err
	}
	files := []struct {
		name string
		data []byte
	}{{ManifestName, next}}
	if o.Signer != nil {
		sig, err := sign(o.Signer, next)
		if err != nil {
			return nil, err
		}
		files = append(files, struct {
			name string
			data []byte
		}{SignatureName, sig})
	} else if err := s.dst.Remove(SignatureName); err != nil {
		return nil, err
	}
	uid, gid, give, err := owner(s.root)
	if err != nil {
		return nil, err
	}
	for _, f := range files {
		if err := s.create(f.name, 0o644); err != nil {
			return nil, err
		}
		_, _ = s.files[f.name].Write(f.data) // an error sticks
		if err := s.commitFile(f.name, uid, gid, give); err != nil {
			return nil, err
		}
		if err := s.dst.Swap(stageName+"/"+f.name, f.name); err != nil {
			return nil, fmt.Errorf("putting %s in place: %w", f.name, err)
		}
	}
	return old, nil
}

// sameManifest reports whether old, which is there as text, says the same as m
// but for the date, and is signed if m is to be.
func (s *stage) sameManifest(m, old *Manifest, text []byte, o Options) bool {
	dated := *m
	dated.Created = old.Created
	want, err := dated.encode()
	if err != nil || !slices.Equal(want, text) {
		return false
	}
	sig, err := readFile(s.dst.FS(), SignatureName, maxManifest)
	if o.Signer == nil {
		return errors.Is(err, fs.ErrNotExist)
	}
	pub, ok := ecdsaKey(o.Signer)
	return err == nil && ok && verifySignature(pub, text, sig)
}

// discard removes the stage and closes what is open. It is called also after
// everything has been moved out of it.
func (s *stage) discard() {
	for _, f := range s.files {
		f.file.Abort() // does nothing after Commit
	}
	_ = s.dir.Close() // nothing is left to be written
	// A stage that stays is removed by the next export.
	_ = s.dst.RemoveAll(stageName)
}
