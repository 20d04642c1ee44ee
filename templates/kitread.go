package templates

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"iter"

	"github.com/imprint-iot/imprint/inventory"
)

// Omits says what files do not hold at all.
type Omits struct {
	Node  bool // the broker's addresses, certificate and key
	Trust bool // the trust bundle
	CRLs  bool
}

// Parse implements [Target]. It reads an export of imprint and nothing else: each
// text has to be, octet for octet, what its mark says.
func (t kitTarget) Parse(src fs.FS) (View, error) {
	v := &kitView{kit: t.Kit, src: src, setting: &Setting{Version: t.Caps.Versions[0], Form: t.Caps.Forms[0]}}
	if err := v.readTexts(); err != nil {
		return nil, err
	}
	var err error
	if !t.NoTrust {
		if v.trust, err = ReadCertificates(src, TrustFile); err != nil {
			return nil, err
		}
	}
	if t.Caps.CRL {
		if v.crls, err = ReadCRLs(src, CRLFile); err != nil {
			return nil, err
		}
	}
	if !t.NoNode {
		s := v.setting
		v.node = Node{Bind: s.Bind, CertificatePort: s.CertificatePort, PasswordPort: s.PasswordPort}
		if v.node.ServerChain, err = ReadCertificates(src, ChainFile); err != nil {
			return nil, err
		}
		key, err := ReadFile(src, KeyFile)
		if err != nil {
			return nil, err
		}
		v.node.ServerKey = inventory.NewSecret(key)
	}
	return v, nil
}

// readTexts finds the mark in one of the texts and holds all of them to it.
func (v *kitView) readTexts() error {
	texts := map[string][]byte{}
	marked := false
	for _, t := range v.kit.Texts {
		if t.Doc {
			continue
		}
		b, err := ReadFile(v.src, t.Name)
		switch {
		case errors.Is(err, fs.ErrNotExist) && t.Form != "":
			continue
		case err != nil:
			return err
		}
		texts[t.Name] = b
		if marked || !bytes.Contains(b, []byte(stampStart)) {
			continue
		}
		if v.setting, err = parseStamp(b); err != nil {
			return fmt.Errorf("reading %s: %w", t.Name, err)
		}
		marked = true
	}
	for _, t := range v.kit.Texts {
		if t.Doc || t.Form != "" && t.Form != v.setting.Form {
			continue // a file of another form may be left from before
		}
		want, err := fillText(t.Text, v.setting)
		if err != nil {
			return fmt.Errorf("reading %s: %w", t.Name, err)
		}
		if !bytes.Equal(want, texts[t.Name]) {
			return fmt.Errorf("reading %s: it is not what imprint writes", t.Name)
		}
	}
	return nil
}

// kitView is an export of a kit, read back. The devices stay in their files.
type kitView struct {
	kit     *Kit
	src     fs.FS
	setting *Setting
	trust   []byte
	crls    []CRL
	node    Node
}

var _ Partial = (*kitView)(nil)

// Revision implements [View]: files do not know it.
func (v *kitView) Revision() uint64 { return 0 }

// Fleet implements [View].
func (v *kitView) Fleet() Fleet {
	return Fleet{Name: v.setting.Fleet, TrustDomain: v.setting.TrustDomain}
}

// Node implements [View].
func (v *kitView) Node() Node { return v.node }

// TrustBundle implements [View].
func (v *kitView) TrustBundle() []byte { return v.trust }

// CRLs implements [View].
func (v *kitView) CRLs() []CRL { return v.crls }

// Profiles implements [View]: files know none.
func (v *kitView) Profiles() iter.Seq2[inventory.Profile, error] {
	return func(func(inventory.Profile, error) bool) {}
}

// Entries implements [View].
func (v *kitView) Entries() iter.Seq2[Entry, error] {
	return func(yield func(Entry, error) bool) {
		if v.kit.asks(v.setting) {
			return
		}
		var prev inventory.DeviceID
		for e, err := range v.kit.Devices(v.src, v.setting) {
			if err == nil {
				err = CheckEntry(prev, &e)
			}
			prev = e.ID
			if !yield(e, err) || err != nil {
				return
			}
		}
	}
}

// Carry implements [Partial].
func (v *kitView) Carry(e Entry) (Entry, bool) {
	c, ok, err := v.kit.carry(e)
	return c, ok && err == nil && !v.kit.asks(v.setting)
}

// Omits implements [Partial].
func (v *kitView) Omits() Omits { return v.kit.omits() }

func (k *Kit) omits() Omits { return Omits{Node: k.NoNode, Trust: k.NoTrust, CRLs: !k.Caps.CRL} }
