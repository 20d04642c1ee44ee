package foreign

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"slices"
)

// Package json folds the case of keys and lets the last of two win. A broker does
// neither, and a plan must not say of a rule what the broker would not: objects are
// read key by key, exactly, and a key that comes twice is an error.

var errShape = errors.New("not the JSON that was expected")

// object calls take with each key of an object. take reads the value, or reports
// that it does not want it.
func object(dec *json.Decoder, take func(key string) (bool, error)) error {
	if err := delim(dec, '{'); err != nil {
		return err
	}
	var seen keys
	for dec.More() {
		tok, err := dec.Token()
		if err != nil {
			return err
		}
		key, ok := tok.(string)
		if !ok {
			return errShape
		}
		if !seen.add(key) {
			return fmt.Errorf("the key %.64q is there twice", key)
		}
		wanted, err := take(key)
		if err != nil {
			return err
		}
		if !wanted {
			var skipped json.RawMessage
			if err := dec.Decode(&skipped); err != nil {
				return err
			}
		}
	}
	return delim(dec, '}')
}

// keys are those of an object so far. Most objects have few.
type keys struct {
	few  []string
	many map[string]bool
}

// add reports whether the key is new.
func (k *keys) add(key string) bool {
	if k.many != nil {
		known := k.many[key]
		k.many[key] = true
		return !known
	}
	if slices.Contains(k.few, key) {
		return false
	}
	if k.few = append(k.few, key); len(k.few) > 16 {
		k.many = make(map[string]bool, 64)
		for _, f := range k.few {
			k.many[f] = true
		}
	}
	return true
}

// array calls take with each element of an array.
func array(dec *json.Decoder, take func() error) error {
	if err := delim(dec, '['); err != nil {
		return err
	}
	for dec.More() {
		if err := take(); err != nil {
			return err
		}
	}
	return delim(dec, ']')
}

func delim(dec *json.Decoder, want json.Delim) error {
	tok, err := dec.Token()
	if err != nil {
		return err
	}
	if tok != want {
		return errShape
	}
	return nil
}

// fields reads an object into variables, by key.
func fields(dec *json.Decoder, into map[string]any) error {
	return object(dec, func(key string) (bool, error) {
		v, ok := into[key]
		if !ok {
			return false, nil
		}
		if read, ok := v.(func() error); ok {
			return true, read()
		}
		if err := dec.Decode(v); err != nil {
			return true, fmt.Errorf("%s: %w", key, quiet(err))
		}
		return true, nil
	})
}

// quiet leaves the value out of an error: it may be a password.
func quiet(err error) error {
	if _, ok := errors.AsType[*json.UnmarshalTypeError](err); ok {
		return errShape
	}
	return err
}

// ended reports that something follows the one value of a file.
func ended(dec *json.Decoder) error {
	if _, err := dec.Token(); !errors.Is(err, io.EOF) {
		return errors.New("something follows the file's one value")
	}
	return nil
}
