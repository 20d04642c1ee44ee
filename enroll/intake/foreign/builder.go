package foreign

import (
	"cmp"
	"context"
	"fmt"
	"strings"
	"time"

	"github.com/imprint-iot/imprint/inventory"
	"github.com/imprint-iot/imprint/inventory/topic"
)

// maxPerCode is how many findings of one code are listed; the rest is counted.
const maxPerCode = 200

// A place is where something was found.
type place struct {
	file string
	line int // 0 means the whole file
}

// A user is an identity of the source, while it is read.
type user struct {
	name    string
	at      place
	profile string // that the source names
	group   string
	serial  string
	labels  map[string]string

	verifiers    []inventory.Verifier
	certificates []Certificate
	problems     []string

	ruled  bool // the source says what the user may do, be it nothing
	grants []topic.Grant
}

func (u *user) label(key, value string) {
	if u.labels == nil {
		u.labels = map[string]string{}
	}
	u.labels[key] = value
}

func (u *user) problem(format string, args ...any) {
	u.problems = append(u.problems, fmt.Sprintf(format, args...))
}

// A builder makes a plan.
type builder struct {
	ctx      context.Context // for as long as the call of Read
	o        Options
	now      time.Time
	users    map[string]*user
	order    []*user
	findings []Finding
	counts   map[string]int // findings by code
	worst    map[string]Severity
}

func newBuilder(ctx context.Context, o Options) *builder {
	o.Prefix = cmp.Or(o.Prefix, "imported")
	o.VHost = cmp.Or(o.VHost, "/")
	o.Exchange = cmp.Or(o.Exchange, "amq.topic")
	now := o.Now
	if now.IsZero() {
		now = time.Now()
	}
	return &builder{ctx: ctx, o: o, now: now, users: map[string]*user{}, counts: map[string]int{}, worst: map[string]Severity{}}
}

// user returns the user with a name, and whether it is new.
func (b *builder) user(name string, at place) (*user, bool) {
	if u, ok := b.users[name]; ok {
		return u, false
	}
	u := &user{name: name, at: at}
	b.users[name] = u
	b.order = append(b.order, u)
	return u, true
}

// find adds a finding. What comes from the source is in args, quoted by the
// format, and is never a secret.
func (b *builder) find(s Severity, code, subject string, at place, format string, args ...any) {
	b.counts[code]++
	if b.counts[code] > maxPerCode {
		b.worst[code] = max(b.worst[code], s)
		return
	}
	b.findings = append(b.findings, Finding{s, code, show(subject), fmt.Sprintf(format, args...), at.file, at.line})
}

// show is a name as it can be printed.
func show(name string) string {
	for i := range len(name) {
		if c := name[i]; c <= ' ' || c > '~' || c == '"' || i == 128 {
			return fmt.Sprintf("%.128q", name)
		}
	}
	return name
}

// finish makes the plan of what was read.
func (b *builder) finish(kind string) *Plan {
	b.users = nil // all are in order
	devices := make([]Device, len(b.order))
	b.identify(devices)
	b.sharedPasswords()
	profiles := b.reconstruct(devices)
	for i, u := range b.order {
		d := &devices[i]
		d.Name, d.Group, d.HardwareSerial = u.name, u.group, u.serial
		d.Labels = inventory.NewLabels(u.labels)
		d.Verifiers, d.Certificates = u.verifiers, u.certificates
		if d.Profile == "" {
			d.Profile = cmp.Or(u.profile, b.o.Profile)
		}
		if d.Profile == "" && !u.ruled {
			u.problem(problemNoProfile)
		}
		if d.ID != "" && d.Profile != "" {
			b.check(u, d)
		}
		d.Problems = u.problems
	}
	b.summarize(devices)
	for code, n := range b.counts {
		if n > maxPerCode {
			b.findings = append(b.findings, Finding{Severity: b.worst[code], Code: code, Text: fmt.Sprintf("and %d more of this kind", n-maxPerCode)})
		}
	}
	sortFindings(b.findings)
	return &Plan{Kind: kind, Devices: devices, Profiles: profiles, Findings: b.findings}
}

// problemNoProfile is the one problem that another source can solve: see [Merge].
const problemNoProfile = "the source says nothing of its rights: name a profile"

// check holds a device to the grammar of the inventory.
func (b *builder) check(u *user, d *Device) {
	rec := d.record()
	rec.Kind, rec.State = inventory.Equipment, inventory.Registered
	if err := rec.Validate(); err != nil {
		u.problem("%s", err)
		b.find(Error, "invalid", u.name, u.at, "%s", err)
	}
}

// record is the device as the inventory keeps it.
func (d *Device) record() inventory.Device {
	return inventory.Device{ID: d.ID, HardwareSerial: d.HardwareSerial, Profile: d.Profile, Group: d.Group, Labels: d.Labels}
}

// summarize says what holds for many devices once.
func (b *builder) summarize(devices []Device) {
	schemes := make(map[inventory.Scheme]int)
	certificates, none, lost := 0, 0, 0
	for i := range devices {
		d := &devices[i]
		for _, v := range d.Verifiers {
			schemes[v.Scheme]++
		}
		if len(d.Certificates) > 0 {
			certificates++
		}
		switch {
		case len(d.Problems) > 0:
			lost++
		case len(d.Verifiers) == 0:
			none++
		}
	}
	for s := inventory.PBKDF2SHA512; s <= inventory.PBKDF2SHA1; s++ {
		if n := schemes[s]; n > 0 {
			b.find(Note, "passwords", "", place{}, "%s carried over as %s; %s", count(n, "password"), s, readBy(s))
		}
	}
	if len(schemes) > 0 {
		b.find(Note, "old-passwords", "", place{}, "passwords that are carried over are as good as those who chose them: rotate them when the move is done")
	}
	if certificates > 0 {
		b.find(Warning, "certificates", "", place{}, "%s with a certificate of another authority, which cannot be carried over: it is neither trusted by brokers of this fleet nor revocable here; enroll the device (serial number, fingerprint, issuer and expiry are kept as labels)", count(certificates, "device"))
	}
	if none > 0 {
		b.find(Note, "no-credential", "", place{}, "%s will be registered without a credential: enroll them", count(none, "device"))
	}
	if lost > 0 {
		b.find(Error, "problems", "", place{}, "%s cannot be taken over as things are", count(lost, "device"))
	}
}

func count(n int, what string) string {
	if n == 1 {
		return "1 " + what
	}
	return fmt.Sprintf("%d %ss", n, what)
}

// readBy says which brokers can check a verifier.
func readBy(s inventory.Scheme) string {
	switch s {
	case inventory.PBKDF2SHA512:
		return "Mosquitto, FlashMQ and HiveMQ read it"
	case inventory.SHA512Suffix:
		return "Mosquitto, VerneMQ and EMQX read it"
	case inventory.SHA256Suffix:
		return "EMQX reads it"
	case inventory.RabbitSHA256:
		return "RabbitMQ reads it"
	case inventory.Bcrypt:
		return "EMQX, NATS and PostgreSQL backends read it"
	case inventory.Argon2id:
		return "Mosquitto 2.1 reads it if it was built so"
	case inventory.SHA512Prefix:
		return "HiveMQ Enterprise reads it"
	case inventory.PBKDF2SHA1:
		return "Mosca and ActiveMQ Artemis read it"
	}
	return "other brokers need a new password"
}

// cancelled reports that nobody waits for the plan any more.
func (b *builder) cancelled() error { return b.ctx.Err() }

// lower is the form in which IDs are compared.
func lower(s string) string { return strings.ToLower(s) }
