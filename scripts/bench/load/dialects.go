package main

import (
	"archive/tar"
	"bytes"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"
	"path"
	"strings"

	"filippo.io/age"

	"github.com/imprint-iot/imprint/enroll/api"
)

// A dialect is how one broker asks, and what it takes for yes and no.
type dialect struct {
	connectPath, accessPath string
	mediaType               string
	connectBody             func(id, password string) string
	accessBody              func(id, topic string) string
	yes, no                 string // yes is a part of the body, no all of it
}

func dialects() map[string]dialect {
	return map[string]dialect{
		"emqx": {
			connectPath: "emqx/auth", accessPath: "emqx/acl", mediaType: api.MediaJSON,
			connectBody: func(id, password string) string {
				return fmt.Sprintf(`{"username":%q,"clientid":%q,"password":%q,"cn":"undefined","cert":"undefined"}`, id, id, password)
			},
			accessBody: func(id, topic string) string {
				return fmt.Sprintf(`{"username":%q,"clientid":%q,"cn":"undefined","topic":%q,"action":"publish"}`, id, id, topic)
			},
			yes: `"result":"allow"`, no: `{"result":"deny"}`,
		},
		"rabbitmq": {
			connectPath: "rabbitmq/user", accessPath: "rabbitmq/topic", mediaType: "application/x-www-form-urlencoded",
			connectBody: func(id, password string) string {
				return url.Values{"username": {id}, "client_id": {id}, "password": {password}, "vhost": {"/"}}.Encode()
			},
			accessBody: func(id, topic string) string {
				return url.Values{
					"username": {id}, "vhost": {"/"}, "resource": {"topic"}, "name": {"amq.topic"}, "permission": {"write"},
					"variable_map.client_id": {id}, "tags": {""}, "routing_key": {strings.ReplaceAll(topic, "/", ".")},
				}.Encode()
			},
			yes: "allow", no: "deny",
		},
		"json": {
			connectPath: "json/connect", accessPath: "json/access", mediaType: api.MediaJSON,
			connectBody: func(id, password string) string {
				return fmt.Sprintf(`{"username":%q,"clientId":%q,"password":%q}`, id, id, password)
			},
			accessBody: func(id, topic string) string {
				return fmt.Sprintf(`{"username":%q,"clientId":%q,"action":"publish","topic":%q}`, id, id, topic)
			},
			yes: `"allowed":true`, no: `{"allowed":false}`,
		},
	}
}

func (d *dialect) connect(token, id, password string) []byte {
	return d.post(token, d.connectPath, d.connectBody(id, password))
}

func (d *dialect) access(token, id, topic string) []byte {
	return d.post(token, d.accessPath, d.accessBody(id, topic))
}

func (d *dialect) post(token, where, body string) []byte {
	return fmt.Appendf(nil, "POST %s%s HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer %s\r\nContent-Type: %s\r\nContent-Length: %d\r\n\r\n%s",
		api.PathWebhook, where, token, d.mediaType, len(body), body)
}

// ask puts a question. An answer that is neither yes nor no is an error.
func (d *dialect) ask(c *conn, request []byte) (bool, error) {
	code, body, err := c.do(request)
	switch {
	case err != nil:
		return false, err
	case code == http.StatusOK && string(bytes.TrimSpace(body)) == d.no:
		return false, nil
	case code == http.StatusOK && bytes.Contains(body, []byte(d.yes)):
		return true, nil
	}
	return false, fmt.Errorf("neither yes nor no: %d %.200s", code, body)
}

// A login is a device with the password that it was handed.
type login struct{ id, password string }

// samples is how many devices connect with their passwords, again and again.
const samples = 2000

// recipient makes an age key, writes it to a file and prints its public half.
func recipient(file string) error {
	key, err := age.GenerateX25519Identity()
	if err != nil {
		return err
	}
	if err := os.WriteFile(file, []byte(key.String()+"\n"), 0o600); err != nil {
		return err
	}
	_, err = fmt.Fprintln(os.Stdout, key.Recipient())
	return err
}

// passwords reads those of devices from all over the fleet, from what bootstrap has
// handed out.
func (d *deciding) passwords() ([]login, error) {
	key, err := os.ReadFile(d.identity)
	if err != nil {
		return nil, err
	}
	ids, err := age.ParseIdentities(bytes.NewReader(key))
	if err != nil {
		return nil, err
	}
	f, err := os.Open(d.archive)
	if err != nil {
		return nil, err
	}
	defer func() { _ = f.Close() }()
	plain, err := age.Decrypt(f, ids...)
	if err != nil {
		return nil, err
	}
	want := map[string]bool{}
	for i := 0; i < d.kept(); i += max(1, d.kept()/samples) {
		want[deviceName(i)] = true
	}
	var all []login
	for t := tar.NewReader(plain); ; {
		h, err := t.Next()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return nil, err
		}
		if id := path.Dir(h.Name); want[id] && path.Base(h.Name) == "password" {
			text, err := io.ReadAll(t)
			if err != nil {
				return nil, err
			}
			all = append(all, login{id, strings.TrimSpace(string(text))})
		}
	}
	if len(all) != len(want) {
		return nil, fmt.Errorf("%d passwords in %s, want %d", len(all), d.archive, len(want))
	}
	return all, nil
}
