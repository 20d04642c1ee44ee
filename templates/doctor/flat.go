package doctor

import (
	"strings"
)

// A setting is a line "key = value" of rabbitmq.conf or vernemq.conf, which have
// the same grammar (cuttlefish).
type setting struct {
	key   string
	value string
	at    place
}

// A flat configuration has no nesting: its keys are paths.
type flat []setting

func readFlat(file string, text []byte) flat {
	var c flat
	for n, line := range lines(text) {
		line = strings.TrimSpace(line)
		if line == "" || line[0] == '#' || line[0] == '%' {
			continue
		}
		key, value, ok := strings.Cut(line, "=")
		if !ok {
			continue
		}
		if before, _, ok := strings.Cut(value, " #"); ok {
			value = before
		}
		c = append(c, setting{strings.TrimSpace(key), strings.Trim(strings.TrimSpace(value), `"'`), place{file, n}})
	}
	return c
}

// get returns the last setting of a key; no value if there is none.
func (c flat) get(key string) setting {
	var last setting
	for _, s := range c {
		if s.key == key {
			last = s
		}
	}
	return last
}

// under returns the settings whose keys begin with prefix, with the rest of the
// key.
func (c flat) under(prefix string) flat {
	var out flat
	for _, s := range c {
		if rest, ok := strings.CutPrefix(s.key, prefix); ok {
			out = append(out, setting{rest, s.value, s.at})
		}
	}
	return out
}
