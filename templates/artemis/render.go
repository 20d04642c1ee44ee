package artemis

import (
	"bytes"
	"cmp"
	"crypto/hkdf"
	"crypto/sha256"
	"encoding/hex"
	"io"
	"slices"
	"strconv"
	"strings"
	"text/template"

	"github.com/imprint-iot/imprint/inventory"
	"github.com/imprint-iot/imprint/templates"
)

// propertiesHead begins a file in the form of java.util.Properties. Names are in the
// alphabet of IDs, so that nothing has to be escaped.
const propertiesHead = "# Written by imprint. Do not edit: the next export replaces it.\n"

// appendUser appends a user with a password. A value that is not in ENC() would be a
// password in the clear.
func appendUser(b []byte, _ int, e *templates.Entry, _ *templates.Setting) ([]byte, error) {
	if len(e.Verifiers) == 0 {
		return b, nil
	}
	v := e.Verifiers[0]
	b = strconv.AppendUint(append(append(b, e.ID...), "=ENC("...), uint64(v.Iterations), 10)
	b = appendHex(append(b, ':'), v.Salt)
	b = appendHex(append(b, ':'), v.Hash)
	return append(b, ")\n"...), nil
}

// appendHex appends octets in hexadecimal, as Artemis writes it: in upper case.
func appendHex(b, octets []byte) []byte {
	const digits = "0123456789ABCDEF"
	for _, c := range octets {
		b = append(b, digits[c>>4], digits[c&15])
	}
	return b
}

// appendCertificate appends a user with the subject of the certificate.
func appendCertificate(b []byte, _ int, e *templates.Entry, s *templates.Setting) ([]byte, error) {
	if !e.Certificate {
		return b, nil
	}
	name, err := subject(e.ID, s.Fleet)
	if err != nil {
		return nil, err
	}
	if err := checkSubject(e, s.Fleet); err != nil {
		return nil, err
	}
	b = append(append(b, e.ID...), '=')
	b = append(b, name...)
	return append(b, '\n'), nil
}

// lockedRole stands where a file would be empty. Nobody has a role that no setting
// names.
const lockedRole = "@imprint="

// writeRoles writes the role of each device, and of each filter that several have.
func (t *table) writeRoles(w io.Writer) error {
	if _, err := io.WriteString(w, propertiesHead+lockedRole+"\n"); err != nil {
		return err
	}
	var line []byte
	for _, id := range t.ids {
		line = append(append(append(append(line[:0], id...), '='), id...), '\n')
		if _, err := w.Write(line); err != nil {
			return err
		}
	}
	for i := range t.rows {
		r := &t.rows[i]
		for _, list := range []struct {
			action  string
			devices []int32
		}{{"p", r.publish}, {"r", r.receive}} {
			if len(list.devices) < 2 {
				continue
			}
			b := append([]byte(t.role(r.filter, list.action, list.devices)), '=')
			for k, n := range list.devices {
				if k > 0 {
					b = append(b, ',')
				}
				b = append(b, t.ids[n]...)
			}
			if _, err := w.Write(append(b, '\n')); err != nil {
				return err
			}
		}
	}
	return nil
}

// The permissions of a setting (Artemis manual, "Security"). A subscription is a queue
// on the address, which the client makes and deletes.
func publishTypes() []string { return []string{"send", "createAddress"} }
func receiveTypes() []string {
	return []string{"consume", "createAddress", "createNonDurableQueue", "deleteNonDurableQueue", "createDurableQueue", "deleteDurableQueue"}
}

const (
	nobody     = "    <security-setting match=\"#\">\n    </security-setting>\n"
	byWider    = "      <!-- and by wider filters -->\n"
	brokerTail = "  </security-settings>\n</core>\n</configuration>\n"
)

// writeBroker writes broker.xml.
func (t *table) writeBroker(w io.Writer, s *templates.Setting, serverKey []byte) error {
	head, err := brokerHead(s, serverKey)
	if err != nil {
		return err
	}
	if _, err := w.Write(head); err != nil {
		return err
	}
	if !slices.ContainsFunc(t.rows, func(r row) bool { return r.filter == "#" }) {
		if _, err := io.WriteString(w, nobody); err != nil {
			return err
		}
	}
	var b []byte
	err = t.settings(func(s *setting) error {
		b = appendSetting(b[:0], s)
		_, err := w.Write(b)
		return err
	})
	if err != nil {
		return err
	}
	_, err = io.WriteString(w, brokerTail)
	return err
}

func appendSetting(b []byte, s *setting) []byte {
	b = append(appendXML(append(b, "    <security-setting match=\""...), string(s.filter)), "\">\n"...)
	permit := func(types []string, roles ...string) {
		for _, kind := range types {
			b = append(append(append(b, "      <permission type=\""...), kind...), "\" roles=\""...)
			for i, r := range roles {
				if i > 0 {
					b = append(b, ',')
				}
				b = append(b, r...)
			}
			b = append(b, "\"/>\n"...)
		}
	}
	if s.publish != "" {
		permit(publishTypes(), s.publish)
	}
	if s.receive != "" {
		permit(receiveTypes(), s.receive)
	}
	if len(s.publishByWider)+len(s.receiveByWider) > 0 {
		b = append(b, byWider...)
	}
	if len(s.publishByWider) > 0 {
		permit(publishTypes(), s.publishByWider...)
	}
	if len(s.receiveByWider) > 0 {
		permit(receiveTypes(), s.receiveByWider...)
	}
	return append(b, "    </security-setting>\n"...)
}

// appendXML appends the value of an attribute (XML 1.0 §2.3).
func appendXML(b []byte, s string) []byte {
	if !strings.ContainsAny(s, `&<>"`) {
		return append(b, s...)
	}
	return append(b, strings.NewReplacer("&", "&amp;", "<", "&lt;", ">", "&gt;", `"`, "&quot;").Replace(s)...)
}

func xmlText(s string) string {
	if !strings.Contains(s, "&") {
		return s
	}
	return strings.NewReplacer("&lt;", "<", "&gt;", ">", "&quot;", `"`, "&amp;", "&").Replace(s)
}

// brokerHead is broker.xml up to the settings.
func brokerHead(s *templates.Setting, serverKey []byte) ([]byte, error) {
	t, err := template.New("").Option("missingkey=error").Parse(brokerText)
	if err != nil {
		return nil, err
	}
	secret, err := hkdf.Key(sha256.New, serverKey, []byte("imprint/1 artemis"), "cluster user", 32)
	if err != nil {
		return nil, err
	}
	bind := cmp.Or(s.Bind, "0.0.0.0")
	if strings.Contains(bind, ":") {
		bind = "[" + bind + "]"
	}
	var b bytes.Buffer
	err = t.Execute(&b, map[string]any{
		"Dest": s.Dest, "Bind": bind, "CertificatePort": s.CertificatePort, "PasswordPort": s.PasswordPort,
		"Keystore": KeystoreName, "Trust": templates.TrustFile, "CRL": templates.CRLFile,
		"ClusterUser": "imprint-" + hex.EncodeToString(secret[:16]), "ClusterPassword": hex.EncodeToString(secret[16:]),
	})
	return b.Bytes(), err
}

// verifierOf reads the value of a user.
func verifierOf(text string) (inventory.Verifier, bool) {
	v := inventory.Verifier{Scheme: inventory.PBKDF2SHA1}
	inner, ok := strings.CutPrefix(text, "ENC(")
	inner, closed := strings.CutSuffix(inner, ")")
	f := strings.Split(inner, ":")
	if !ok || !closed || len(f) != 3 {
		return v, false
	}
	n, err1 := strconv.ParseUint(f[0], 10, 31)
	salt, err2 := hex.DecodeString(f[1])
	hash, err3 := hex.DecodeString(f[2])
	v.Iterations, v.Salt, v.Hash = uint32(n), salt, hash
	return v, err1 == nil && err2 == nil && err3 == nil && n > 0 && len(salt) > 0 && len(hash) > 0
}
