package emqx

import (
	"errors"
	"fmt"
	"strconv"
	"strings"
)

// What follows is for the evaluator alone: the two notations of EMQX, as far as an
// export has any use for them. What is beyond that is an error.

// readHOCON returns the scalars of a configuration by their paths: "a.b.0.c".
func readHOCON(text string) (map[string]string, error) {
	p := &hocon{text: text, out: map[string]string{}}
	p.object("", false)
	if p.err == nil && p.pos < len(p.text) {
		p.err = errors.New("a brace too many")
	}
	return p.out, p.err
}

type hocon struct {
	text string
	pos  int
	out  map[string]string
	err  error
}

// peek skips blanks, comments and commas, and returns the next byte, 0 at the end.
func (p *hocon) peek() byte {
	for p.pos < len(p.text) {
		switch c := p.text[p.pos]; {
		case strings.IndexByte(" \t\r\n,", c) >= 0:
			p.pos++
		case c == '#' || strings.HasPrefix(p.text[p.pos:], "//"):
			if n := strings.IndexByte(p.text[p.pos:], '\n'); n >= 0 {
				p.pos += n
			} else {
				p.pos = len(p.text)
			}
		default:
			return c
		}
	}
	return 0
}

// word reads a quoted string or what is there up to a mark.
func (p *hocon) word(marks string) string {
	if p.peek() == '"' {
		end := p.pos + 1
		for end < len(p.text) && p.text[end] != '"' {
			if p.text[end] == '\\' {
				end++
			}
			end++
		}
		if end >= len(p.text) {
			p.fail("a string without an end")
			return ""
		}
		s, err := strconv.Unquote(p.text[p.pos : end+1])
		if err != nil {
			p.fail("a string that is none")
		}
		p.pos = end + 1
		return s
	}
	n := strings.IndexAny(p.text[p.pos:], marks)
	if n <= 0 {
		p.fail("a word is missing")
		return ""
	}
	s := strings.TrimSpace(p.text[p.pos : p.pos+n])
	if strings.ContainsAny(s, "${\"") || s == "include" {
		p.fail("substitutions and includes are not read here")
	}
	p.pos += n
	return s
}

func (p *hocon) fail(why string) {
	if p.err == nil {
		p.err = fmt.Errorf("line %d: %s", 1+strings.Count(p.text[:min(p.pos, len(p.text))], "\n"), why)
	}
}

func (p *hocon) object(path string, braces bool) {
	for p.err == nil {
		switch c := p.peek(); {
		case c == 0 && !braces, c == '}' && braces:
			p.pos++
			return
		case c == 0, c == '}':
			p.fail("braces do not match")
			return
		}
		key := p.word(" \t=:{\n")
		if p.peek() == '=' || p.peek() == ':' {
			p.pos++
		}
		p.value(path + key)
	}
}

func (p *hocon) value(path string) {
	switch p.peek() {
	case '{':
		p.pos++
		p.object(path+".", true)
	case '[':
		p.pos++
		for i := 0; p.err == nil; i++ {
			if p.peek() == ']' {
				p.pos++
				return
			}
			p.value(path + "." + strconv.Itoa(i))
		}
	default:
		p.out[path] = p.word(" \t\r\n,}]#")
	}
}

// A term is an Erlang term: an atom, a string, or a tuple or list of terms.
type term struct {
	atom, text string
	kids       []term
}

// at returns a part of a tuple or list, or a term that is nothing.
func (t term) at(i int) term {
	if i < len(t.kids) {
		return t.kids[i]
	}
	return term{}
}

// readErlang reads terms that end in a dot, as file:consult does.
func readErlang(text string) ([]term, error) {
	p := &erlang{text: text}
	var out []term
	for p.skip(); p.pos < len(p.text) && p.err == nil; p.skip() {
		out = append(out, p.term())
		p.mark('.')
	}
	return out, p.err
}

type erlang struct {
	text string
	pos  int
	err  error
}

func (p *erlang) skip() {
	for p.pos < len(p.text) {
		switch c := p.text[p.pos]; {
		case c == '%':
			n := strings.IndexByte(p.text[p.pos:], '\n')
			if n < 0 {
				n = len(p.text) - p.pos
			}
			p.pos += n
		case strings.IndexByte(" \t\r\n", c) >= 0:
			p.pos++
		default:
			return
		}
	}
}

func (p *erlang) next() byte {
	if p.skip(); p.pos < len(p.text) {
		return p.text[p.pos]
	}
	return 0
}

func (p *erlang) mark(c byte) {
	if p.next() != c && p.err == nil {
		p.err = fmt.Errorf("octet %d: want %q", p.pos, c)
	}
	p.pos++
}

func (p *erlang) term() term {
	var t term
	switch c := p.next(); {
	case c == '{', c == '[':
		end := c + 2 // } and ] in ASCII
		p.pos++
		for p.err == nil && p.next() != end {
			if len(t.kids) > 0 {
				p.mark(',')
			}
			t.kids = append(t.kids, p.term())
		}
		p.mark(end)
	case c == '"':
		t.text = p.string()
	case c >= 'a' && c <= 'z':
		from := p.pos
		for p.pos < len(p.text) && (p.text[p.pos] == '_' || p.text[p.pos] >= 'a' && p.text[p.pos] <= 'z') {
			p.pos++
		}
		t.atom = p.text[from:p.pos]
	default:
		p.mark('{')
	}
	return t
}

// string reads a string. Of the escapes of Erlang it knows those of one printable
// character that stands for itself.
func (p *erlang) string() string {
	var b strings.Builder
	for p.pos++; p.pos < len(p.text); p.pos++ {
		c := p.text[p.pos]
		if c == '"' {
			p.pos++
			return b.String()
		}
		if c == '\\' {
			if p.pos++; p.pos < len(p.text) {
				c = p.text[p.pos]
			}
			if c != '"' && c != '\\' && p.err == nil {
				p.err = fmt.Errorf("octet %d: an escape that is not read here", p.pos)
			}
		}
		b.WriteByte(c)
	}
	if p.err == nil {
		p.err = errors.New("a string without an end")
	}
	return ""
}
