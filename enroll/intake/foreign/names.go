package foreign

import (
	"cmp"
	"crypto/sha256"
	"slices"
	"strings"

	"github.com/imprint-iot/imprint/inventory"
)

// maxID is the longest device ID, in bytes.
const maxID = 64

// identify gives each device its ID. A name that is none gets a suggestion, and
// the ID itself if renaming was asked for. IDs are unique ignoring case: if two
// names would come to one ID, neither gets it, because which of the two is meant
// in an old topic or log is not ours to say.
func (b *builder) identify(devices []Device) {
	claims := map[string][]int{}
	for i, u := range b.order {
		d := &devices[i]
		id, err := inventory.ParseDeviceID(u.name)
		if err == nil {
			d.ID = id
			claims[lower(string(id))] = append(claims[lower(string(id))], i)
			continue
		}
		d.Suggest = suggest(u.name)
		if d.Suggest == "" {
			u.problem("its name is no device id, and none can be made of it")
			b.find(Error, "name", u.name, u.at, "the name is no device id: want 1 to 64 letters, digits, '-' or '_'; reserved names are refused too")
			continue
		}
		claims[lower(string(d.Suggest))] = append(claims[lower(string(d.Suggest))], i)
	}
	for i, u := range b.order {
		d := &devices[i]
		key := lower(string(cmp.Or(d.ID, d.Suggest)))
		if key == "" {
			continue
		}
		if n := claims[key]; len(n) > 1 {
			other := n[0]
			if other == i {
				other = n[1]
			}
			d.ID, d.Suggest = "", ""
			u.problem("its id would be that of %.128q", b.order[other].name)
			b.find(Error, "name-collision", u.name, u.at, "the id would be the same as that of %.128q: ids are unique ignoring case", b.order[other].name)
			continue
		}
		if d.ID == "" {
			b.rename(u, d)
		}
	}
}

func (b *builder) rename(u *user, d *Device) {
	if b.o.Rename {
		d.ID = d.Suggest
		b.find(Warning, "renamed", u.name, u.at, "is imported as %s: the device must log in by that name, and its topics change with it", d.ID)
		return
	}
	u.problem("its name is no device id; %s would do", d.Suggest)
	b.find(Error, "name", u.name, u.at, "the name is no device id: want 1 to 64 letters, digits, '-' or '_'; %s would do, if the device can be told", d.Suggest)
}

// suggest makes an ID of a name: what an ID cannot have becomes '-'. It is empty if
// nothing good comes of it.
func suggest(name string) inventory.DeviceID {
	mapped := strings.Map(func(r rune) rune {
		switch {
		case 'a' <= r && r <= 'z', 'A' <= r && r <= 'Z', '0' <= r && r <= '9', r == '-', r == '_':
			return r
		}
		return '-'
	}, name)
	mapped = strings.TrimLeft(mapped, "-_")
	id, err := inventory.ParseDeviceID(mapped[:min(len(mapped), maxID)])
	if err != nil || len(mapped) > maxID {
		return ""
	}
	return id
}

// sharedPasswords finds users whose lines were copied: the same salt and hash.
func (b *builder) sharedPasswords() {
	seen := make(map[[sha256.Size]byte]*user, len(b.order))
	var text []byte
	for _, u := range b.order {
		for _, v := range u.verifiers {
			text = append(append(append(text[:0], byte(v.Scheme), byte(len(v.Salt))), v.Salt...), v.Hash...)
			key := sha256.Sum256(text)
			first, ok := seen[key]
			if !ok {
				seen[key] = u
				continue
			}
			if len(v.Salt) > 0 || v.Scheme == inventory.Bcrypt || v.Scheme == inventory.Argon2id {
				b.find(Error, "shared-hash", u.name, u.at, "has the same salt and hash as %.128q: whoever has one password has both", first.name)
			} else {
				b.find(Error, "shared-hash", u.name, u.at, "has the same password as %.128q: without a salt everybody can see it", first.name)
			}
		}
	}
}

// sortFindings puts the worst first, and within one severity those of one code
// together in the order of the source.
func sortFindings(f []Finding) {
	slices.SortStableFunc(f, func(x, y Finding) int {
		return cmp.Or(cmp.Compare(y.Severity, x.Severity), strings.Compare(x.Code, y.Code), strings.Compare(x.File, y.File), cmp.Compare(x.Line, y.Line))
	})
}
