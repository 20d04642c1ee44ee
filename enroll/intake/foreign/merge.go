package foreign

import (
	"fmt"
	"slices"

	"github.com/imprint-iot/imprint/inventory"
)

// Merge joins plans of one fleet, as the access list of its broker and the folder of
// its authority: a device is the same if its name is. What the first plan says of a
// device holds, and others add what it leaves open; a problem that one of them sees,
// as a revoked certificate, is a problem of the whole.
//
// The error wraps [inventory.ErrConflict] if two plans have a profile of one name with
// different rules: read one of them with another prefix.
func Merge(first *Plan, more ...*Plan) (*Plan, error) {
	out := &Plan{
		Kind: first.Kind, Devices: slices.Clone(first.Devices), Profiles: slices.Clone(first.Profiles), Findings: slices.Clone(first.Findings),
	}
	at := make(map[string]int, len(out.Devices))
	for i := range out.Devices {
		at[out.Devices[i].Name] = i
	}
	for _, p := range more {
		out.Kind += "+" + p.Kind
		if err := out.addProfiles(p); err != nil {
			return nil, err
		}
		for i := range p.Devices {
			d := &p.Devices[i]
			if j, ok := at[d.Name]; ok {
				out.join(&out.Devices[j], d)
				continue
			}
			at[d.Name] = len(out.Devices)
			out.Devices = append(out.Devices, *d)
		}
		out.Findings = append(out.Findings, p.Findings...)
	}
	out.distinct()
	sortFindings(out.Findings)
	return out, nil
}

func (p *Plan) addProfiles(q *Plan) error {
	for _, pr := range q.Profiles {
		have := p.profile(pr.Name)
		if have == nil {
			p.Profiles = append(p.Profiles, pr)
			continue
		}
		if !slices.Equal(have.Policy.Rules, pr.Policy.Rules) {
			return &inventory.ConflictError{Why: inventory.Exists, Record: "profile " + pr.Name, Detail: "with other rules, from another source"}
		}
	}
	return nil
}

func (p *Plan) profile(name string) *inventory.Profile {
	for i := range p.Profiles {
		if p.Profiles[i].Name == name {
			return &p.Profiles[i]
		}
	}
	return nil
}

// join adds to d what another plan says of it. A profile that was made of rules goes
// before one that was only named.
func (p *Plan) join(d, other *Device) {
	if other.Profile != "" && (d.Profile == "" || p.profile(d.Profile) == nil && p.profile(other.Profile) != nil) {
		d.Profile = other.Profile
	}
	if d.Group == "" {
		d.Group = other.Group
	}
	if d.HardwareSerial == "" {
		d.HardwareSerial = other.HardwareSerial
	}
	if len(d.Verifiers) == 0 {
		d.Verifiers = other.Verifiers
	}
	labels := labelMap(other.Labels)
	for _, l := range d.Labels {
		labels[l.Key] = l.Value
	}
	d.Labels = inventory.NewLabels(labels)
	d.Certificates = append(slices.Clone(d.Certificates), other.Certificates...)
	problems := append(slices.Clone(d.Problems), other.Problems...)
	d.Problems = nil
	for _, why := range problems {
		if !slices.Contains(d.Problems, why) && (why != problemNoProfile || d.Profile == "") {
			d.Problems = append(d.Problems, why)
		}
	}
}

// distinct finds devices of two plans that would have one ID.
func (p *Plan) distinct() {
	seen := make(map[string]int, len(p.Devices))
	for i := range p.Devices {
		d := &p.Devices[i]
		if d.ID == "" {
			continue
		}
		j, ok := seen[d.ID.Canonical()]
		if !ok {
			seen[d.ID.Canonical()] = i
			continue
		}
		why := fmt.Sprintf("its id would be that of %.128q", p.Devices[j].Name)
		p.Findings = append(p.Findings, Finding{Severity: Error, Code: "name-collision", Subject: show(d.Name), Text: why})
		d.Problems = append(slices.Clone(d.Problems), why)
		first := &p.Devices[j]
		first.Problems = append(slices.Clone(first.Problems), fmt.Sprintf("its id would be that of %.128q", d.Name))
	}
}
