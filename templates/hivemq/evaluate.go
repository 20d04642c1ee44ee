package hivemq

import (
	"bufio"
	"encoding/xml"
	"fmt"
	"io/fs"
	"regexp"
	"strings"

	"github.com/imprint-iot/imprint/templates"
	"github.com/imprint-iot/imprint/templates/proof"
)

// An evaluator decides like DefaultPermissionsEvaluator of HiveMQ. It shares no code
// with what writes the files.
type evaluator map[string][]permission // by user name

// permission is TopicPermission with the type ALLOW, every quality of service and
// retained or not.
type permission struct {
	Topic    string `xml:"topic"`
	Activity string `xml:"activity"`            // PUBLISH, SUBSCRIBE, ALL
	Shared   string `xml:"shared-subscription"` // SHARED, NOT_SHARED, ALL
}

func newEvaluator(src fs.FS) (proof.Evaluator, error) {
	form, err := templates.FormOf(src, ConfName)
	if err != nil {
		return nil, err
	}
	if form == ESESQL {
		return evaluateSQL(src)
	}
	return evaluateXML(src)
}

// evaluateXML reads credentials.xml as the extension does: whole, into memory.
func evaluateXML(src fs.FS) (proof.Evaluator, error) {
	text, err := fs.ReadFile(src, CredentialsName)
	if err != nil {
		return nil, err
	}
	var doc struct {
		XMLName xml.Name `xml:"file-rbac"`
		Users   []struct {
			Name     string   `xml:"name"`
			Password string   `xml:"password"`
			Roles    []string `xml:"roles>id"`
		} `xml:"users>user"`
		Roles []struct {
			ID          string       `xml:"id"`
			Permissions []permission `xml:"permissions>permission"`
		} `xml:"roles>role"`
	}
	if err := xml.Unmarshal(text, &doc); err != nil {
		return nil, fmt.Errorf("reading %s: %w", CredentialsName, err)
	}
	roles := map[string][]permission{}
	for _, r := range doc.Roles {
		if _, twice := roles[r.ID]; twice || r.ID == "" || len(r.Permissions) == 0 {
			return nil, fmt.Errorf("reading %s: role %.128q is there twice or empty", CredentialsName, r.ID)
		}
		roles[r.ID] = r.Permissions
	}
	out := evaluator{}
	for _, u := range doc.Users {
		if _, twice := out[u.Name]; twice || u.Name == "" || len(u.Roles) == 0 || strings.Count(u.Password, ":") != 2 {
			return nil, fmt.Errorf("reading %s: user %.128q is there twice or not whole", CredentialsName, u.Name)
		}
		out[u.Name] = nil
		for _, id := range u.Roles {
			if roles[id] == nil {
				return nil, fmt.Errorf("reading %s: user %.128q has no such role", CredentialsName, u.Name)
			}
			out[u.Name] = append(out[u.Name], roles[id]...)
		}
	}
	if len(out) == 0 {
		return nil, fmt.Errorf("reading %s: no users", CredentialsName)
	}
	return out, nil
}

// evaluateSQL reads the rows of users.sql as far as they are about rights.
func evaluateSQL(src fs.FS) (proof.Evaluator, error) {
	f, err := src.Open(SQLName)
	if err != nil {
		return nil, err
	}
	defer func() { _ = f.Close() }() // it was only read
	user := regexp.MustCompile(`^INSERT INTO imprint_user VALUES \('([^']+)', '[^']+', '[^']+'\);$`)
	rule := regexp.MustCompile(`^INSERT INTO imprint_rule VALUES \('([^']+)', '((?:[^']|'')*)', (TRUE|FALSE), (TRUE|FALSE)\);$`)
	out := evaluator{}
	lines := bufio.NewScanner(f)
	lines.Buffer(nil, 1<<20)
	for lines.Scan() {
		if m := user.FindStringSubmatch(lines.Text()); m != nil {
			out[m[1]] = []permission{}
		}
		m := rule.FindStringSubmatch(lines.Text())
		if m == nil {
			continue
		}
		text := strings.ReplaceAll(m[2], "''", "'")
		if m[3] == "TRUE" {
			out[m[1]] = append(out[m[1]], permission{text, "PUBLISH", "NOT_SHARED"})
		}
		if m[4] == "TRUE" {
			out[m[1]] = append(out[m[1]], permission{text, "SUBSCRIBE", "NOT_SHARED"})
		}
	}
	return out, lines.Err()
}

// Answer implements [proof.Evaluator].
func (e evaluator) Answer(q proof.Question) (proof.Answer, error) {
	user, there := e[q.Device]
	activity := "PUBLISH"
	switch q.Verb {
	case proof.Receive, proof.Subscribe:
		activity = "SUBSCRIBE"
	case proof.Publish, proof.Will, proof.Retain:
	default:
		return proof.Unknown, nil
	}
	if !there {
		return proof.Denied, nil
	}
	text, shared := q.Topic, false
	if rest, ok := strings.CutPrefix(text, "$share/"); ok && activity == "SUBSCRIBE" {
		_, text, shared = strings.Cut(rest, "/")
	}
	for _, p := range user {
		if p.Activity != "ALL" && p.Activity != activity || shared && p.Shared == "NOT_SHARED" || !shared && p.Shared == "SHARED" {
			continue
		}
		if p.implies(text) {
			return proof.Allowed, nil
		}
	}
	return proof.Denied, nil
}

// implies is PermissionTopicMatcherUtils.matches: slashes at the end are stripped from
// the permission, and from the topic only where the permission has no wildcard.
func (p permission) implies(actual string) bool {
	own := strings.TrimRight(p.Topic, "/")
	if !strings.ContainsAny(own, "+#") {
		if len(actual) > 1 {
			actual = strings.TrimRight(actual, "/")
		}
		return own == actual
	}
	if strings.Contains(own, "#") && own != "#" && !strings.HasSuffix(own, "/#") {
		return false
	}
	want, got := strings.Split(own, "/"), strings.Split(actual, "/")
	for i := range min(len(want), len(got)) {
		switch {
		case want[i] == got[i], want[i] == "+":
		case want[i] == "#":
			return true
		default:
			return false
		}
	}
	return len(want) == len(got) || len(want)-len(got) == 1 && want[len(want)-1] == "#"
}
