package doctor

import (
	"encoding/json"
	"net/url"
)

// The SARIF 2.1.0 object model (OASIS), as far as it is written here.
type (
	sarifLog struct {
		Schema  string     `json:"$schema"`
		Version string     `json:"version"`
		Runs    []sarifRun `json:"runs"`
	}
	sarifRun struct {
		Tool struct {
			Driver sarifDriver `json:"driver"`
		} `json:"tool"`
		Results []sarifResult `json:"results"`
	}
	sarifDriver struct {
		Name    string      `json:"name"`
		Version string      `json:"version,omitempty"`
		Rules   []sarifRule `json:"rules"`
	}
	sarifText struct {
		Text string `json:"text"`
	}
	sarifRule struct {
		ID      string    `json:"id"`
		Short   sarifText `json:"shortDescription"`
		Full    sarifText `json:"fullDescription"`
		Help    sarifText `json:"help"`
		Default struct {
			Level string `json:"level"`
		} `json:"defaultConfiguration"`
	}
	sarifResult struct {
		Rule      string          `json:"ruleId"`
		RuleIndex int             `json:"ruleIndex"`
		Level     string          `json:"level"`
		Message   sarifText       `json:"message"`
		Locations []sarifLocation `json:"locations"`
	}
	sarifLocation struct {
		Physical sarifPhysical `json:"physicalLocation"`
	}
	sarifPhysical struct {
		Artifact struct {
			URI string `json:"uri"`
		} `json:"artifactLocation"`
		Region *sarifRegion `json:"region,omitempty"`
	}
	sarifRegion struct {
		StartLine int `json:"startLine"`
	}
)

// SARIF returns the report in the Static Analysis Results Interchange Format 2.1.0,
// which code hosts show beside the lines. The version is that of imprint. All rules
// are in it, also those that hold, so that a reader knows what was looked for. A
// finding at a live endpoint has the address as its location, as mqtt://HOST:PORT.
func (r Report) SARIF(version string) ([]byte, error) {
	log := sarifLog{Schema: "https://json.schemastore.org/sarif-2.1.0.json", Version: "2.1.0", Runs: make([]sarifRun, 1)}
	run := &log.Runs[0]
	run.Tool.Driver = sarifDriver{Name: "imprint", Version: version}
	run.Results = []sarifResult{}
	index := map[string]int{}
	for i, rule := range Rules() {
		index[rule.ID] = i
		s := sarifRule{ID: rule.ID, Short: sarifText{rule.Title}, Full: sarifText{rule.Why}, Help: sarifText{rule.Why + " " + rule.Fix}}
		s.Default.Level = string(rule.Severity)
		run.Tool.Driver.Rules = append(run.Tool.Driver.Rules, s)
	}
	for _, f := range r.Findings {
		var at sarifPhysical
		at.Artifact.URI = r.uri(f.File)
		if f.Line > 0 {
			at.Region = &sarifRegion{f.Line}
		}
		run.Results = append(run.Results, sarifResult{
			Rule: f.Rule, RuleIndex: index[f.Rule], Level: string(f.Severity),
			Message:   sarifText{f.Title + ": " + f.Detail + ". " + f.Fix},
			Locations: []sarifLocation{{at}},
		})
	}
	return json.MarshalIndent(log, "", "  ")
}

func (r Report) uri(file string) string {
	switch {
	case file != "":
		return (&url.URL{Path: file}).String()
	case r.Kind == KindEndpoint:
		return (&url.URL{Scheme: "mqtt", Host: r.Subject}).String()
	}
	return (&url.URL{Path: r.Subject}).String()
}
