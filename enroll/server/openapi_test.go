package server_test

import (
	"net/http"
	"os"
	"slices"
	"strings"
	"testing"

	"github.com/goccy/go-yaml"

	"github.com/imprint-iot/imprint/enroll/api"
	"github.com/imprint-iot/imprint/enroll/server"
	"github.com/imprint-iot/imprint/enroll/server/servertest"
)

// The document that is published names the routes that there are, and no others.
// EST has a document of its own, RFC 7030.
func TestOpenAPI(t *testing.T) {
	f := servertest.Start(t, servertest.Options{})
	a := f.Do(call{Path: api.PathOpenAPI})
	file, err := os.ReadFile("openapi.yaml")
	if err != nil || a.Status != http.StatusOK || string(a.Body) != string(file) {
		t.Fatalf("the document served is not the one kept: %d, %v", a.Status, err)
	}
	var doc struct {
		OpenAPI string                    `yaml:"openapi"`
		Paths   map[string]map[string]any `yaml:"paths"`
	}
	if err := yaml.Unmarshal(file, &doc); err != nil {
		t.Fatal(err)
	}
	if !strings.HasPrefix(doc.OpenAPI, "3.1.") {
		t.Errorf("version %s", doc.OpenAPI)
	}
	var said []string
	for path, item := range doc.Paths {
		for method, op := range item {
			if method == "parameters" {
				continue
			}
			said = append(said, strings.ToUpper(method)+" "+path)
			responses, _ := op.(map[string]any)["responses"].(map[string]any)
			if _, ok := responses["default"]; !ok {
				t.Errorf("%s %s: no answer for what goes wrong", method, path)
			}
		}
	}
	var real []string
	for _, name := range server.RouteNames(f.Server) {
		if !strings.Contains(name, api.PathEST) {
			real = append(real, strings.ReplaceAll(name, "...}", "}"))
		}
	}
	slices.Sort(said)
	slices.Sort(real)
	if !slices.Equal(said, real) {
		t.Errorf("the document says\n%s\nand there are\n%s", strings.Join(said, "\n"), strings.Join(real, "\n"))
	}
}
