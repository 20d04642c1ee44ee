package emqx_test

import (
	"bufio"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"

	"github.com/imprint-iot/imprint/inventory/topic"
	"github.com/imprint-iot/imprint/templates"
	"github.com/imprint-iot/imprint/templates/emqx"
	"github.com/imprint-iot/imprint/templates/targettest"
)

// An api stands in for the REST API of EMQX, as far as its manual says what it does.
type api struct {
	mu     sync.Mutex
	users  map[string]string // CSV line by name
	rules  map[string]string // body of the PUT by name
	acl    string
	banned map[string]bool
	calls  []string // what takes away and what kicks, in order
	refuse bool     // each user that is imported
	broken string   // a call that is answered with 500, as "GET /path"; others with that beginning, too
}

func (a *api) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if name, secret, _ := r.BasicAuth(); name != "key" || secret != "secret" {
		w.WriteHeader(http.StatusUnauthorized)
		return
	}
	const users, rules = "/api/v5/authentication/password_based%3Abuilt_in_database/", "/api/v5/authorization/sources/built_in_database/rules/users"
	path := r.URL.EscapedPath()
	switch {
	case a.broken != "" && strings.HasPrefix(r.Method+" "+strings.TrimPrefix(path, "/api/v5"), a.broken):
		w.WriteHeader(http.StatusInternalServerError)
	case r.Method == http.MethodGet && path == users+"users":
		page(w, r, "user_id", a.users)
	case r.Method == http.MethodPost && path == users+"import_users":
		a.importUsers(w, r)
	case r.Method == http.MethodDelete && strings.HasPrefix(path, users+"users/"):
		a.remove(w, path, a.users)
	case r.Method == http.MethodGet && path == rules:
		page(w, r, "username", a.rules)
	case r.Method == http.MethodDelete && strings.HasPrefix(path, rules+"/"):
		a.remove(w, path, a.rules)
	case r.Method == http.MethodPut && strings.HasPrefix(path, rules+"/"):
		var u struct{ Username string }
		body, err := io.ReadAll(r.Body)
		if err != nil || json.Unmarshal(body, &u) != nil || rules+"/"+u.Username != path || r.Header.Get("Content-Type") != "application/json" {
			w.WriteHeader(http.StatusBadRequest)
			return
		}
		a.rules[u.Username] = string(body)
		w.WriteHeader(http.StatusNoContent)
	case r.Method == http.MethodPut && path == "/api/v5/authorization/sources/file":
		var s struct {
			Type, Rules string
			Enable      bool
		}
		if json.NewDecoder(r.Body).Decode(&s) != nil || s.Type != "file" || !s.Enable {
			w.WriteHeader(http.StatusBadRequest)
			return
		}
		a.acl = s.Rules
		w.WriteHeader(http.StatusNoContent)
	case r.Method == http.MethodDelete && path == "/api/v5/authorization/cache":
		a.calls = append(a.calls, "flush")
		w.WriteHeader(http.StatusNoContent)
	case r.Method == http.MethodPost && path == "/api/v5/banned":
		var b struct{ As, Who, Until string }
		if json.NewDecoder(r.Body).Decode(&b) != nil || b.As != "clientid" || b.Until == "" || a.banned[b.Who] {
			w.WriteHeader(http.StatusBadRequest)
			return
		}
		a.banned[b.Who] = true
		a.calls = append(a.calls, "ban "+b.Who)
	case r.Method == http.MethodDelete && strings.HasPrefix(path, "/api/v5/banned/clientid/"):
		delete(a.banned, path[strings.LastIndexByte(path, '/')+1:])
		w.WriteHeader(http.StatusNoContent)
	case r.Method == http.MethodDelete && strings.HasPrefix(path, "/api/v5/clients/"):
		a.calls = append(a.calls, "kick "+path[strings.LastIndexByte(path, '/')+1:])
		w.WriteHeader(http.StatusNotFound) // it has gone already: the ban did that
	default:
		w.WriteHeader(http.StatusNotImplemented)
	}
}

// set makes the API refuse what it did not, with an old user there.
func (a *api) set(refuse bool, broken string) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.refuse, a.broken = refuse, broken
	a.users["old"], a.rules["old"] = "x", "x"
}

func page(w http.ResponseWriter, r *http.Request, key string, all map[string]string) {
	number, err1 := strconv.Atoi(r.FormValue("page"))
	limit, err2 := strconv.Atoi(r.FormValue("limit"))
	if err1 != nil || err2 != nil || limit > 10_000 {
		w.WriteHeader(http.StatusBadRequest)
		return
	}
	data := []map[string]string{}
	for i, name := range slices.Sorted(maps.Keys(all)) {
		if i >= (number-1)*limit && i < number*limit {
			data = append(data, map[string]string{key: name})
		}
	}
	_ = json.NewEncoder(w).Encode(map[string]any{"data": data, "meta": map[string]any{}})
}

func (a *api) remove(w http.ResponseWriter, path string, from map[string]string) {
	name, err := url.PathUnescape(path[strings.LastIndexByte(path, '/')+1:])
	if _, ok := from[name]; err != nil || !ok {
		w.WriteHeader(http.StatusNotFound)
		return
	}
	delete(from, name)
	a.calls = append(a.calls, "delete "+name)
	w.WriteHeader(http.StatusNoContent)
}

func (a *api) importUsers(w http.ResponseWriter, r *http.Request) {
	f, header, err := r.FormFile("filename")
	if err != nil || !strings.HasSuffix(header.Filename, ".csv") || r.FormValue("type") != "hash" {
		w.WriteHeader(http.StatusBadRequest)
		return
	}
	n := 0
	for s := bufio.NewScanner(f); s.Scan(); n++ {
		if name, _, _ := strings.Cut(s.Text(), ","); n > 0 && !a.refuse {
			a.users[name] = s.Text()
		}
	}
	failed := 0
	if a.refuse {
		failed = n - 1
	}
	_, _ = fmt.Fprintf(w, `{"total":%d,"success":%d,"override":0,"skipped":0,"failed":%d}`, n-1, n-1-failed, failed)
}

// After the script the broker is the fleet: who is gone is gone first, passwords and
// rules are the new ones, and sessions end last.
func TestScript(t *testing.T) {
	need(t, "curl", "curl")
	need(t, "jq", "jq")
	for _, form := range []string{emqx.File, emqx.API} {
		t.Run(form, func(t *testing.T) {
			f := small(t)
			f.Device(t, "dev-11", "valve", "yard", "correct horse")
			f.Devices[0].Grants = append(f.Devices[0].Grants, topic.Grant{Action: topic.Publish, Filter: "o'clock/\"\\'<&>$(id)`id`/é"})
			a := &api{users: map[string]string{}, rules: map[string]string{}, banned: map[string]bool{"dev-11": true}}
			for i := range 1500 { // two pages of others
				a.users[fmt.Sprintf("old-%04d", i)] = "x"
			}
			a.users["a/b?c é"], a.rules["a/b?c é"] = "x", "x"
			a.users["dev-1"] = "an old password"
			server := httptest.NewServer(a)
			defer server.Close()
			dir := t.TempDir()
			apply := func(args ...string) error { return runScript(t, dir, server.URL, args...) }

			write(t, dir, f, templates.Options{Form: form, Now: f.Now})
			if err := apply(); err != nil {
				t.Fatal(err)
			}
			checkBroker(t, a, dir, form)

			f.Remove("dev-11")
			write(t, dir, f, templates.Options{Form: form, Now: f.Now})
			a.mu.Lock()
			a.calls = nil
			a.mu.Unlock()
			if err := apply("dev-3"); err != nil {
				t.Fatal(err)
			}
			checkBroker(t, a, dir, form)
			want := []string{"delete dev-11", "delete dev-11", "flush", "ban dev-11", "ban dev-3", "kick dev-11", "kick dev-3"}
			if form == emqx.File {
				want = want[1:]
			}
			if !slices.Equal(a.calls, want) {
				t.Errorf("calls %q, want %q", a.calls, want)
			}
			if !a.banned["dev-11"] || !a.banned["dev-3"] || a.banned["dev-1"] {
				t.Errorf("banned %v, want dev-11 and dev-3", a.banned)
			}

			a.set(true, "")
			if err := apply(); err == nil {
				t.Error("users that the broker refuses are no error")
			}
			calls := []string{"GET /authentication", "POST /authentication", "DELETE /authorization/cache", "DELETE /banned", "POST /banned", "DELETE /clients", "DELETE /authentication"}
			if form == emqx.API {
				calls = append(calls, "GET /authorization", "PUT /authorization", "DELETE /authorization/sources")
			} else {
				calls = append(calls, "PUT /authorization")
			}
			for _, broken := range calls {
				a.set(false, broken)
				if err := apply("dev-3"); err == nil {
					t.Errorf("%s is answered with 500, and that is no error", broken)
				}
			}
		})
	}
}

// checkBroker compares what the broker has with the files.
func checkBroker(t *testing.T, a *api, dir, form string) {
	t.Helper()
	a.mu.Lock()
	defer a.mu.Unlock()
	file := func(name string) []string {
		text, err := os.ReadFile(filepath.Join(dir, name))
		if err != nil {
			t.Fatal(err)
		}
		return strings.Split(strings.TrimSuffix(string(text), "\n"), "\n")
	}
	values := func(m map[string]string) []string { return slices.Sorted(maps.Values(m)) }
	if want := file(emqx.UsersName)[1:]; !slices.Equal(values(a.users), slices.Sorted(slices.Values(want))) {
		t.Errorf("%d users %.300q, want %q", len(a.users), values(a.users), want)
	}
	if form == emqx.File {
		if want := strings.Join(file(emqx.ACLName), "\n") + "\n"; a.acl != want {
			t.Errorf("access list\n%s\nwant\n%s", a.acl, want)
		}
		return
	}
	var want []string
	for _, l := range file(emqx.RulesName) {
		want = append(want, canonical(t, l))
	}
	var got []string
	for _, l := range values(a.rules) {
		got = append(got, canonical(t, l))
	}
	slices.Sort(want)
	slices.Sort(got)
	if !slices.Equal(got, want) {
		t.Errorf("rules\n%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
	}
}

// canonical is a JSON text in one spelling.
func canonical(t *testing.T, text string) string {
	t.Helper()
	var v any
	if err := json.Unmarshal([]byte(text), &v); err != nil {
		t.Fatal(err)
	}
	b, err := json.Marshal(v)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

func runScript(t *testing.T, dir, base string, args ...string) error {
	t.Helper()
	netrc := filepath.Join(t.TempDir(), "netrc")
	if err := os.WriteFile(netrc, []byte("machine 127.0.0.1 login key password secret\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	cmd := exec.CommandContext(t.Context(), "sh", append([]string{filepath.Join(dir, emqx.ScriptName)}, args...)...)
	cmd.Env = append(os.Environ(), "EMQX_NETRC="+netrc, "EMQX_API="+base+"/api/v5")
	out, err := cmd.CombinedOutput()
	if err != nil {
		return fmt.Errorf("%w\n%s", err, out)
	}
	if len(out) > 0 {
		t.Errorf("it says %s", out)
	}
	return nil
}

// Without devices nothing is sent, and nothing fails.
func TestScriptOfNobody(t *testing.T) {
	need(t, "curl", "curl")
	need(t, "jq", "jq")
	f := targettest.NewFleet(t, start())
	for _, form := range []string{emqx.File, emqx.API} {
		a := &api{users: map[string]string{"dev-1": "x"}, rules: map[string]string{"dev-1": "x"}, banned: map[string]bool{}}
		server := httptest.NewServer(a)
		dir := t.TempDir()
		write(t, dir, f, templates.Options{Form: form, Now: f.Now})
		if err := runScript(t, dir, server.URL); err != nil {
			t.Error(err)
		}
		server.Close()
		if len(a.users) != 0 || form == emqx.API && len(a.rules) != 0 {
			t.Errorf("form %s: left %v, %v", form, a.users, a.rules)
		}
	}
}
