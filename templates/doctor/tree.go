package doctor

import (
	"strconv"
	"strings"
	"unicode"
	"unicode/utf8"
)

const maxDepth = 32 // of braces and brackets

// A node is a place in a configuration with braces: HOCON (EMQX, NanoMQ), that of
// NATS and that of FlashMQ. Methods of a nil node return nothing.
type node struct {
	key   string
	value string // of a leaf
	kids  []*node
	list  bool // [ ]
	at    place
}

// get follows keys down; of several with the same key the last one counts.
func (n *node) get(path ...string) *node {
	for _, key := range path {
		if n == nil {
			return nil
		}
		var found *node
		for _, k := range n.kids {
			if k.key == key {
				found = k
			}
		}
		n = found
	}
	return n
}

// all returns the children with a key.
func (n *node) all(key string) []*node {
	var out []*node
	for _, k := range n.each() {
		if k.key == key {
			out = append(out, k)
		}
	}
	return out
}

func (n *node) each() []*node {
	if n == nil {
		return nil
	}
	return n.kids
}

func (n *node) text() string {
	if n == nil {
		return ""
	}
	return n.value
}

func (n *node) place() place {
	if n == nil {
		return place{}
	}
	return n.at
}

// readTree reads a configuration leniently: keys with dots are paths, a key may be
// followed by =, : or a blank, values go to the end of the line, a comma or a
// closing brace, and what is not understood is skipped. Objects with the same path
// merge, but for FlashMQ's, which has several listen blocks without "=".
func readTree(file string, text []byte) *node {
	s := &scanner{file: file, text: string(text), line: 1}
	root := &node{at: place{file, 1}}
	for {
		s.object(root, maxDepth)
		if s.pos >= len(s.text) {
			return root
		}
		s.pos++ // a closing brace too many
	}
}

// A scanner goes through the text once, from the start to the end.
type scanner struct {
	file string
	text string
	pos  int
	line int
}

func (s *scanner) peek() byte {
	if s.pos < len(s.text) {
		return s.text[s.pos]
	}
	return 0
}

func (s *scanner) next() {
	if s.peek() == '\n' {
		s.line++
	}
	s.pos++
}

// skip goes over blanks, commas and comments; line ends too if across is set.
func (s *scanner) skip(across bool) {
	for s.pos < len(s.text) {
		rest := s.text[s.pos:]
		switch c := rest[0]; {
		case c == '#', strings.HasPrefix(rest, "//"):
			for s.pos < len(s.text) && s.peek() != '\n' {
				s.next()
			}
		case c == '\n' && !across:
			return
		case c == ' ', c == '\t', c == '\r', c == '\n', across && (c == ',' || c == ';'):
			s.next()
		default:
			return
		}
	}
}

// object reads members until the end or a closing brace, which it leaves.
func (s *scanner) object(to *node, depth int) {
	for {
		s.skip(true)
		c := s.peek()
		if s.pos >= len(s.text) || c == '}' || c == ']' {
			return
		}
		if c == '{' { // members without a key: the root of a JSON text
			s.block(to, depth)
			continue
		}
		start := s.pos
		at := place{s.file, s.line}
		quoted := c == '"'
		key := s.word(true)
		s.member(to, key, quoted, at, depth)
		if s.pos == start {
			s.next()
		}
	}
}

// member reads what follows a key.
func (s *scanner) member(to *node, key string, quoted bool, at place, depth int) {
	s.skip(false)
	assigned := false
	for c := s.peek(); c == '=' || c == ':' || c == '+'; c = s.peek() {
		s.next()
		assigned = true
	}
	s.skip(false)
	keys := []string{key}
	if !quoted {
		keys = strings.Split(key, ".")
	}
	if len(keys) > maxDepth {
		keys = keys[:maxDepth]
	}
	for _, k := range keys[:len(keys)-1] {
		to = to.child(k, at)
	}
	last := keys[len(keys)-1]
	switch c := s.peek(); {
	case c == '{' && (assigned || last != "listen"):
		s.block(to.child(last, at), depth)
	case c == '{':
		s.block(to.add(&node{key: last, at: at}), depth)
	case c == '[':
		s.array(to.add(&node{key: last, at: at, list: true}), depth)
	default:
		to.add(&node{key: last, at: at, value: s.value()})
	}
}

// child returns the object at a key, a new one if there is none.
func (n *node) child(key string, at place) *node {
	if k := n.get(key); k != nil && k.value == "" && !k.list {
		return k
	}
	return n.add(&node{key: key, at: at})
}

func (n *node) add(kid *node) *node {
	n.kids = append(n.kids, kid)
	return kid
}

// block reads { ... }. Below the greatest depth it reads nothing into the tree.
func (s *scanner) block(to *node, depth int) {
	s.next()
	if depth == 0 {
		s.over()
		return
	}
	s.object(to, depth-1)
	s.next() // the closing brace
}

// array reads [ ... ]; its elements have their numbers as keys.
func (s *scanner) array(to *node, depth int) {
	s.next()
	if depth == 0 {
		s.over()
		return
	}
	for {
		s.skip(true)
		start := s.pos
		el := &node{key: strconv.Itoa(len(to.kids)), at: place{s.file, s.line}}
		switch c := s.peek(); {
		case s.pos >= len(s.text):
			return
		case c == ']', c == '}':
			s.next()
			return
		case c == '{':
			s.block(to.add(el), depth-1)
		case c == '[':
			el.list = true
			s.array(to.add(el), depth-1)
		default:
			el.value = s.value()
			to.add(el)
		}
		if s.pos == start {
			s.next()
		}
	}
}

// over goes to the end of what is nested too deep.
func (s *scanner) over() {
	for open := 1; open > 0 && s.pos < len(s.text); s.next() {
		switch s.peek() {
		case '{', '[':
			open++
		case '}', ']':
			open--
		}
	}
}

// value reads a value of one or more words up to the end of the line, a comma, or
// a closing brace.
func (s *scanner) value() string {
	var b strings.Builder
	for {
		before := s.pos
		s.skip(false)
		c := s.peek()
		if s.pos >= len(s.text) || c == '\n' || c == ',' || c == ';' || c == '}' || c == ']' {
			return b.String()
		}
		if b.Len() > 0 && s.pos > before {
			b.WriteByte(' ')
		}
		start := s.pos
		b.WriteString(s.word(false))
		if s.pos == start {
			s.next()
		}
	}
}

// word reads one word: a text in quotes, or characters up to one that ends it. A
// ${NAME} is a word.
func (s *scanner) word(key bool) string {
	rest := s.text[s.pos:]
	switch {
	case strings.HasPrefix(rest, `"""`):
		return s.quoted(`"""`, false)
	case rest[0] == '"':
		return s.quoted(`"`, true)
	case rest[0] == '\'':
		return s.quoted(`'`, false)
	case strings.HasPrefix(rest, "${"):
		if i := strings.IndexByte(rest, '}'); i > 0 && !strings.Contains(rest[:i], "\n") {
			s.pos += i + 1
			return rest[:i+1]
		}
	}
	start := s.pos
	for s.pos < len(s.text) {
		r, size := utf8.DecodeRuneInString(s.text[s.pos:])
		if unicode.IsSpace(r) || strings.ContainsRune(`,;{}[]"`, r) || key && strings.ContainsRune("=:", r) {
			break
		}
		s.pos += size
	}
	return s.text[start:s.pos]
}

// quoted reads a text up to the closing mark; one that is not closed ends with the
// file, or with the line if it has one quote.
func (s *scanner) quoted(mark string, escapes bool) string {
	s.pos += len(mark)
	var b strings.Builder
	for s.pos < len(s.text) {
		rest := s.text[s.pos:]
		switch {
		case strings.HasPrefix(rest, mark):
			s.pos += len(mark)
			return b.String()
		case escapes && rest[0] == '\\' && len(rest) > 1 && rest[1] != '\n':
			b.WriteByte(rest[1])
			s.pos += 2
			continue
		case rest[0] == '\n' && len(mark) == 1:
			return b.String()
		}
		b.WriteByte(rest[0])
		s.next()
	}
	return b.String()
}
