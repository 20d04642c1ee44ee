package server

import (
	"bytes"
	"encoding/json"
	"errors"
	"strings"

	jsonv2 "github.com/go-json-experiment/json"
	"github.com/go-json-experiment/json/jsontext"

	"github.com/imprint-iot/imprint/enroll/api"
)

// maxDepth is how deep a body may be nested. What is taken here is flat.
const maxDepth = 16

// decode reads the body as one JSON object. The standard decoder takes the last of
// two members with the same name, does not look at the case of a name, replaces
// what is not UTF-8 and leaves what follows unread: each a way for two readers to
// see two different requests.
func (c *call) decode(v any) error {
	if c.mediaType() != api.MediaJSON {
		return problemf(api.CodeMediaType, "want %s", api.MediaJSON)
	}
	if depth(c.body) > maxDepth {
		return problemf(api.CodeJSON, "nested deeper than %d", maxDepth)
	}
	if len(c.body) == 0 || firstByte(c.body) != '{' {
		return problemf(api.CodeField, "want a JSON object")
	}
	err := jsonv2.Unmarshal(c.body, v, jsonv2.RejectUnknownMembers(true))
	if err == nil {
		return noNull(c.body)
	}
	if syntax, ok := errors.AsType[*jsontext.SyntacticError](err); ok {
		if errors.Is(err, jsontext.ErrDuplicateName) {
			return problemf(api.CodeDuplicateKey, "at %.100s", syntax.JSONPointer)
		}
		return problemf(api.CodeJSON, "at byte %d", syntax.ByteOffset)
	}
	if semantic, ok := errors.AsType[*jsonv2.SemanticError](err); ok {
		if errors.Is(err, jsonv2.ErrUnknownName) {
			return problemf(api.CodeUnknownField, "at %.100s", semantic.JSONPointer)
		}
		return problemf(api.CodeField, "at %.100s: not a value of this kind", semantic.JSONPointer)
	}
	return problemf(api.CodeJSON, "")
}

// noNull refuses null where a value is meant: it would be read as none at all. The
// body has been read once, so it has no fault but that.
func noNull(body []byte) error {
	dec := jsontext.NewDecoder(bytes.NewReader(body))
	for {
		t, err := dec.ReadToken()
		if err != nil {
			return nil //nolint:nilerr // the end
		}
		if t.Kind() == 'n' {
			return problemf(api.CodeField, "at %.100s: null is no value", dec.StackPointer())
		}
	}
}

func firstByte(b []byte) byte {
	for _, c := range b {
		if c != ' ' && c != '\t' && c != '\r' && c != '\n' {
			return c
		}
	}
	return 0
}

// depth is an upper bound of how deep b is nested, found without a stack.
func depth(b []byte) int {
	deepest, now, text, escaped := 0, 0, false, false
	for _, c := range b {
		switch {
		case escaped:
			escaped = false
		case text:
			escaped = c == '\\'
			text = c != '"'
		case c == '"':
			text = true
		case c == '{' || c == '[':
			now++
			deepest = max(deepest, now)
		case c == '}' || c == ']':
			now--
		}
	}
	return deepest
}

// answerJSON writes v.
func (c *call) answerJSON(status int, v any) error {
	b, err := json.Marshal(v)
	if err != nil {
		return err
	}
	return c.answer(status, api.MediaJSON, append(b, '\n'))
}

// accepts picks the first of media that the Accept header takes; without one, or
// if none is taken, it is the first.
func (c *call) accepts(media ...string) string {
	header := c.Header.Get("Accept")
	if header == "" {
		return media[0]
	}
	best, quality := media[0], -1
	for i, m := range media {
		if q := qualityOf(header, m); q > quality && q > 0 {
			best, quality = media[i], q
		}
	}
	return best
}

// qualityOf is the weight, in thousandths, that an Accept header gives to a type
// (RFC 9110 §12.5.1).
func qualityOf(header, media string) int {
	kind, _, _ := strings.Cut(media, "/")
	best, exact := 0, -1
	for part := range strings.SplitSeq(header, ",") {
		name, params, _ := strings.Cut(part, ";")
		rank := -1
		switch strings.ToLower(strings.TrimSpace(name)) {
		case media:
			rank = 2
		case kind + "/*":
			rank = 1
		case "*/*":
			rank = 0
		}
		if rank > exact {
			best, exact = weight(params), rank
		}
	}
	return best
}

func weight(params string) int {
	for p := range strings.SplitSeq(params, ";") {
		k, v, _ := strings.Cut(strings.TrimSpace(p), "=")
		if strings.EqualFold(k, "q") {
			return qvalue(v)
		}
	}
	return 1000
}

// qvalue reads 0, 1, or either with up to three decimals.
func qvalue(v string) int {
	whole, part, _ := strings.Cut(v, ".")
	if len(part) > 3 || whole != "0" && whole != "1" {
		return 0
	}
	n := int(whole[0]-'0') * 1000
	for i, scale := 0, 100; i < len(part); i, scale = i+1, scale/10 {
		if part[i] < '0' || part[i] > '9' {
			return 0
		}
		n += int(part[i]-'0') * scale
	}
	return min(n, 1000)
}
