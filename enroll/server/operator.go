package server

import (
	"net/http"
	"net/netip"
	"strconv"
	"time"

	"github.com/imprint-iot/imprint/enroll/api"
	"github.com/imprint-iot/imprint/inventory"
)

// Who administers. An auditor sees everything and changes nothing; an admin sees
// what an operator sees. Nobody inherits: a role that is not named is denied.
var (
	administers = []inventory.Role{inventory.OperatorRole, inventory.AdminRole}
	looksAt     = []inventory.Role{inventory.OperatorRole, inventory.AdminRole, inventory.AuditorRole}
	audits      = []inventory.Role{inventory.AuditorRole, inventory.AdminRole}
)

func (s *Server) operatorRoutes() []route {
	read := func(pattern string, roles []inventory.Role, handle func(*call) error) route {
		return route{method: http.MethodGet, pattern: pattern, door: byToken, roles: roles, handle: handle}
	}
	change := func(pattern string, handle func(*call) error) route {
		return route{method: http.MethodPost, pattern: pattern, door: byToken, roles: administers, body: adminBody, handle: s.once(handle)}
	}
	return []route{
		read("/v1/devices", looksAt, s.listDevices),
		change("/v1/devices", s.addDevice),
		read("/v1/devices/{id}", looksAt, s.showDevice),
		change("/v1/devices/{id}/revoke", s.revokeDevice),
		change("/v1/devices/{id}/suspend", s.suspendDevice),
		change("/v1/devices/{id}/resume", s.resumeDevice),
		change("/v1/devices/{id}/retire", s.retireDevice),
		read("/v1/tokens", looksAt, s.listTokens),
		change("/v1/tokens", s.makeToken),
		read("/v1/tokens/{id}", looksAt, s.showToken),
		change("/v1/tokens/{id}/revoke", s.revokeToken),
		read("/v1/approvals", looksAt, s.listApprovals),
		change("/v1/approvals/{key}/approve", s.approve),
		change("/v1/approvals/{key}/deny", s.deny),
		read("/v1/audit", audits, s.listEvents),
	}
}

// deviceView is a device as operators see it.
type deviceView struct {
	ID             inventory.DeviceID    `json:"id"`
	State          inventory.DeviceState `json:"state"`
	Profile        string                `json:"profile"`
	Group          string                `json:"group,omitempty"`
	HardwareSerial string                `json:"hardware_serial,omitempty"`
	Labels         inventory.Labels      `json:"labels"`
	Created        time.Time             `json:"created"`
	Updated        time.Time             `json:"updated"`
	Credentials    []credentialView      `json:"credentials,omitempty"`
}

type credentialView struct {
	Kind       inventory.CredentialKind  `json:"kind"`
	Generation uint32                    `json:"generation"`
	State      inventory.CredentialState `json:"state"`
	Serial     string                    `json:"serial,omitempty"`
	NotAfter   *time.Time                `json:"not_after,omitempty"`
	Created    time.Time                 `json:"created"`
	FirstSeen  *time.Time                `json:"first_seen,omitempty"`
	RevokedAt  *time.Time                `json:"revoked_at,omitempty"`
	Reason     *inventory.Reason         `json:"reason,omitempty"`
}

func viewDevice(d inventory.Device) deviceView {
	labels := d.Labels
	if labels == nil {
		labels = inventory.Labels{}
	}
	return deviceView{ID: d.ID, State: d.State, Profile: d.Profile, Group: d.Group, HardwareSerial: d.HardwareSerial, Labels: labels, Created: d.Created, Updated: d.Updated}
}

func viewCredential(c *inventory.Credential) credentialView {
	v := credentialView{Kind: c.Kind, Generation: c.Generation, State: c.State, Created: c.Created, FirstSeen: when(c.FirstSeen), RevokedAt: when(c.RevokedAt)}
	if c.Certificate != nil {
		v.Serial, v.NotAfter = c.Certificate.Serial.String(), when(c.Certificate.NotAfter)
	}
	if v.RevokedAt != nil {
		v.Reason = &c.Reason
	}
	return v
}

func when(t time.Time) *time.Time {
	if t.IsZero() {
		return nil
	}
	return &t
}

// A page is one part of a list. Next is what after has to be for the next part.
type page[T any] struct {
	Items []T    `json:"items"`
	Next  string `json:"next,omitempty"`
}

// pageSize reads the parameter limit.
func (c *call) pageSize() (int, error) {
	text := c.URL.Query().Get("limit")
	if text == "" {
		return 100, nil
	}
	n, err := strconv.Atoi(text)
	if err != nil || n < 1 || n > 1000 {
		return 0, problemf(api.CodeField, "limit: want 1 to 1000")
	}
	return n, nil
}

// onlyParameters refuses a query that has another parameter, or one twice: who
// mistypes a filter would otherwise see the whole fleet.
func (c *call) onlyParameters(names ...string) error {
	for name, values := range c.URL.Query() {
		known := false
		for _, n := range names {
			known = known || n == name
		}
		if !known || len(values) > 1 || values[0] == "" {
			return problemf(api.CodeField, "parameter %.64q: want each of %v at most once, with a value", name, names)
		}
	}
	return nil
}

func (s *Server) listDevices(c *call) error {
	if err := c.onlyParameters("state", "profile", "group", "after", "limit"); err != nil {
		return err
	}
	params := c.URL.Query()
	size, err := c.pageSize()
	if err != nil {
		return err
	}
	q := inventory.Query{Profile: params.Get("profile"), Group: params.Get("group"), Limit: size + 1}
	if text := params.Get("state"); text != "" {
		if q.State, err = inventory.ParseDeviceState(text); err != nil {
			return err
		}
	}
	if text := params.Get("after"); text != "" {
		after, err := s.cursors.open("devices", text)
		if err != nil {
			return err
		}
		q.After = inventory.DeviceID(after)
	}
	found, err := s.cfg.Registrar.Devices(c.context(), q)
	if err != nil {
		return err
	}
	out := page[deviceView]{Items: []deviceView{}}
	for i, d := range found {
		if i == size {
			out.Next = s.cursors.seal("devices", string(found[i-1].ID))
			break
		}
		out.Items = append(out.Items, viewDevice(d))
	}
	return c.answerJSON(http.StatusOK, out)
}

func (s *Server) addDevice(c *call) error {
	var q struct {
		ID             string            `json:"id"`
		Profile        string            `json:"profile"`
		Group          string            `json:"group"`
		HardwareSerial string            `json:"hardware_serial"`
		Labels         map[string]string `json:"labels"`
		Reason         string            `json:"reason"`
	}
	if err := c.decode(&q); err != nil {
		return err
	}
	id, err := inventory.ParseDeviceID(q.ID)
	if err != nil {
		return err
	}
	d := inventory.Device{ID: id, Profile: q.Profile, Group: q.Group, HardwareSerial: q.HardwareSerial, Labels: inventory.NewLabels(q.Labels)}
	if d.Profile == "" {
		d.Profile = "default"
	}
	if err := s.cfg.Registrar.AddDevices(c.context(), c.who.Name(), q.Reason, []inventory.Device{d}); err != nil {
		return err
	}
	rec, err := s.cfg.Registrar.Device(c.context(), id)
	if err != nil {
		return err
	}
	return c.answerJSON(http.StatusCreated, viewDevice(rec.Device))
}

// deviceID is the device in the path.
func (c *call) deviceID() (inventory.DeviceID, error) {
	return inventory.ParseDeviceID(c.PathValue("id"))
}

func (s *Server) showDevice(c *call) error {
	id, err := c.deviceID()
	if err != nil {
		return err
	}
	rec, err := s.cfg.Registrar.Device(c.context(), id)
	if err != nil {
		return err
	}
	v := viewDevice(rec.Device)
	for i := range rec.Credentials {
		v.Credentials = append(v.Credentials, viewCredential(&rec.Credentials[i]))
	}
	return c.answerJSON(http.StatusOK, v)
}

// A because is the body of what ends or begins something.
type because struct {
	Reason string `json:"reason"` // of a revocation: a CRLReason; else free text
	Note   string `json:"note"`   // free text
}

// turn changes the state of the device in the path and shows it.
func (s *Server) turn(c *call, step func(id inventory.DeviceID, why because) error) error {
	id, err := c.deviceID()
	if err != nil {
		return err
	}
	why, err := c.because()
	if err != nil {
		return err
	}
	if err := step(id, why); err != nil {
		return err
	}
	return s.showDevice(c)
}

func (s *Server) revokeDevice(c *call) error {
	return s.turn(c, func(id inventory.DeviceID, why because) error {
		if why.Reason == "" {
			return problemf(api.CodeField, "at /reason: a reason is required, as keyCompromise")
		}
		reason, err := inventory.ParseReason(why.Reason)
		if err != nil {
			return err
		}
		_, err = s.cfg.Registrar.Revoke(c.context(), c.who.Name(), why.Note, reason, id)
		return err
	})
}

func (s *Server) suspendDevice(c *call) error {
	return s.turn(c, func(id inventory.DeviceID, why because) error {
		_, err := s.cfg.Registrar.Suspend(c.context(), c.who.Name(), why.text(), id)
		return err
	})
}

func (s *Server) resumeDevice(c *call) error {
	return s.turn(c, func(id inventory.DeviceID, why because) error {
		_, err := s.cfg.Registrar.Resume(c.context(), c.who.Name(), why.text(), id)
		return err
	})
}

func (s *Server) retireDevice(c *call) error {
	return s.turn(c, func(id inventory.DeviceID, why because) error {
		_, err := s.cfg.Registrar.Retire(c.context(), c.who.Name(), why.text(), id)
		return err
	})
}

// because reads why something is done. It is checked here, because an act that
// changes nothing leaves no entry in the log, which would check it.
func (c *call) because() (because, error) {
	var b because
	if err := c.decode(&b); err != nil {
		return b, err
	}
	if len(b.Reason) > 256 || len(b.Note) > 256 {
		return b, problemf(api.CodeField, "a reason or a note of more than 256 bytes")
	}
	return b, nil
}

// text is what is written into the audit log.
func (b because) text() string {
	if b.Note == "" {
		return b.Reason
	}
	return b.Note
}

// tokenView is a token as operators see it. The secret is in it once, when it is
// made.
type tokenView struct {
	ID        inventory.TokenID    `json:"id"`
	Token     string               `json:"token,omitempty"`
	Role      inventory.Role       `json:"role"`
	Name      string               `json:"name,omitempty"`
	Limit     uint32               `json:"limit,omitempty"`
	Uses      uint32               `json:"uses"`
	Devices   []inventory.DeviceID `json:"devices,omitempty"`
	Prefix    string               `json:"prefix,omitempty"`
	Profile   string               `json:"profile,omitempty"`
	Group     string               `json:"group,omitempty"`
	Station   inventory.DeviceID   `json:"station,omitempty"`
	Networks  []netip.Prefix       `json:"networks,omitempty"`
	PerMinute uint32               `json:"per_minute,omitempty"`
	Approve   bool                 `json:"approve,omitempty"`
	Replace   bool                 `json:"replace,omitempty"`
	NotBefore time.Time            `json:"not_before"`
	Expires   time.Time            `json:"expires"`
	Created   time.Time            `json:"created"`
	CreatedBy string               `json:"created_by"`
	RevokedAt *time.Time           `json:"revoked_at,omitempty"`
}

func viewToken(t inventory.Token) tokenView {
	return tokenView{
		ID: t.ID(), Role: t.Role, Name: t.Name, Limit: t.Limit, Uses: t.Uses, Devices: t.Devices, Prefix: t.Prefix, Profile: t.Profile,
		Group: t.Group, Station: t.Station, Networks: t.Networks, PerMinute: t.PerMinute, Approve: t.Approve, Replace: t.Replace,
		NotBefore: t.NotBefore, Expires: t.Expires, Created: t.Created, CreatedBy: t.CreatedBy, RevokedAt: when(t.RevokedAt),
	}
}

func (s *Server) listTokens(c *call) error {
	if err := c.onlyParameters(); err != nil {
		return err
	}
	found, err := s.cfg.Registrar.Tokens(c.context())
	if err != nil {
		return err
	}
	out := page[tokenView]{Items: []tokenView{}}
	for _, t := range found {
		out.Items = append(out.Items, viewToken(t))
	}
	return c.answerJSON(http.StatusOK, out)
}

func (s *Server) makeToken(c *call) error {
	var q struct {
		Role      string   `json:"role"`
		Name      string   `json:"name"`
		Limit     uint32   `json:"limit"`
		Devices   []string `json:"devices"`
		Prefix    string   `json:"prefix"`
		Profile   string   `json:"profile"`
		Group     string   `json:"group"`
		Station   string   `json:"station"`
		Networks  []string `json:"networks"`
		PerMinute uint32   `json:"per_minute"`
		Approve   bool     `json:"approve"`
		Replace   bool     `json:"replace"`
		ExpiresIn uint32   `json:"expires_in"` // seconds
	}
	if err := c.decode(&q); err != nil {
		return err
	}
	role, err := inventory.ParseRole(q.Role)
	if err != nil {
		return err
	}
	if !role.Enrolls() && c.who.Role() != inventory.AdminRole {
		return problemf(api.CodeRoleDenied, "only an admin makes tokens of role %s", role)
	}
	t := inventory.Token{
		Role: role, Name: q.Name, Limit: q.Limit, Prefix: q.Prefix, Profile: q.Profile, Group: q.Group, Station: inventory.DeviceID(q.Station),
		PerMinute: q.PerMinute, Approve: q.Approve, Replace: q.Replace,
	}
	for _, text := range q.Devices {
		t.Devices = append(t.Devices, inventory.DeviceID(text))
	}
	for _, text := range q.Networks {
		p, err := netip.ParsePrefix(text)
		if err != nil {
			return problemf(api.CodeField, "at /networks: want networks such as 192.0.2.0/24")
		}
		t.Networks = append(t.Networks, p)
	}
	if q.ExpiresIn > 0 {
		t.Expires = inventory.UTC(s.cfg.Now()).Add(time.Duration(q.ExpiresIn) * time.Second)
	}
	secret, made, err := s.cfg.Registrar.MakeToken(c.context(), c.who.Name(), "", t)
	if err != nil {
		return err
	}
	defer secret.Wipe()
	v := viewToken(made)
	v.Token = api.TokenText(secret.Reveal())
	return c.answerJSON(http.StatusCreated, v)
}

func (c *call) tokenID() (inventory.TokenID, error) { return inventory.ParseTokenID(c.PathValue("id")) }

func (s *Server) showToken(c *call) error {
	id, err := c.tokenID()
	if err != nil {
		return err
	}
	t, err := s.cfg.Registrar.FindToken(c.context(), id)
	if err != nil {
		return err
	}
	bought, err := s.cfg.Registrar.BoughtWith(c.context(), t)
	if err != nil {
		return err
	}
	if bought == nil {
		bought = []inventory.DeviceID{}
	}
	return c.answerJSON(http.StatusOK, struct {
		tokenView
		Enrolled []inventory.DeviceID `json:"enrolled"`
	}{viewToken(t), bought})
}

func (s *Server) revokeToken(c *call) error {
	id, err := c.tokenID()
	if err != nil {
		return err
	}
	why, err := c.because()
	if err != nil {
		return err
	}
	t, err := s.cfg.Registrar.FindToken(c.context(), id)
	if err != nil {
		return err
	}
	if !t.Role.Enrolls() && c.who.Role() != inventory.AdminRole {
		return problemf(api.CodeRoleDenied, "only an admin revokes tokens of role %s", t.Role)
	}
	if t, err = s.cfg.Registrar.RevokeToken(c.context(), c.who.Name(), why.text(), id); err != nil {
		return err
	}
	return c.answerJSON(http.StatusOK, viewToken(t))
}

type approvalView struct {
	Key     inventory.SPKI          `json:"key"`
	Device  inventory.DeviceID      `json:"device"`
	State   inventory.ApprovalState `json:"state"`
	Asked   string                  `json:"asked"`
	Created time.Time               `json:"created"`
	Decided *time.Time              `json:"decided,omitempty"`
}

func viewApproval(a inventory.Approval) approvalView {
	return approvalView{Key: a.Key, Device: a.Device, State: a.State, Asked: a.Asked, Created: a.Created, Decided: when(a.Decided)}
}

func (s *Server) listApprovals(c *call) error {
	if err := c.onlyParameters(); err != nil {
		return err
	}
	found, err := s.cfg.Registrar.Approvals(c.context())
	if err != nil {
		return err
	}
	out := page[approvalView]{Items: []approvalView{}}
	for _, a := range found {
		out.Items = append(out.Items, viewApproval(a))
	}
	return c.answerJSON(http.StatusOK, out)
}

func (s *Server) approve(c *call) error { return s.decide(c, true) }
func (s *Server) deny(c *call) error    { return s.decide(c, false) }

func (s *Server) decide(c *call, grant bool) error {
	key, err := inventory.ParseSPKI(c.PathValue("key"))
	if err != nil {
		return err
	}
	why, err := c.because()
	if err != nil {
		return err
	}
	a, err := s.cfg.Registrar.Approve(c.context(), c.who.Name(), why.text(), key, grant)
	if err != nil {
		return err
	}
	return c.answerJSON(http.StatusOK, viewApproval(a))
}

func (s *Server) listEvents(c *call) error {
	if err := c.onlyParameters("after", "limit"); err != nil {
		return err
	}
	size, err := c.pageSize()
	if err != nil {
		return err
	}
	var after uint64
	if text := c.URL.Query().Get("after"); text != "" {
		plain, err := s.cursors.open("audit", text)
		if err != nil {
			return err
		}
		if after, err = strconv.ParseUint(plain, 10, 64); err != nil {
			return err
		}
	}
	found, err := s.cfg.Registrar.Events(c.context(), after+1, size+1)
	if err != nil {
		return err
	}
	out := page[inventory.Event]{Items: found}
	if len(found) > size {
		out.Items, out.Next = found[:size], s.cursors.seal("audit", strconv.FormatUint(found[size-1].Seq, 10))
	}
	if out.Items == nil {
		out.Items = []inventory.Event{}
	}
	return c.answerJSON(http.StatusOK, out)
}
