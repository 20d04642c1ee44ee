package server

import (
	"bytes"
	"container/list"
	"crypto/sha256"
	"crypto/subtle"
	"net/http"
	"sync"
	"time"

	"github.com/imprint-iot/imprint/enroll/api"
)

// An operator's script that has lost an answer asks again with the same
// Idempotency-Key, and gets the answer that it has lost. Enrollment needs none: there
// the device and its key say that it is the same request.
const (
	maxReplays   = 1000
	replayFor    = 10 * time.Minute // an answer may hold a token that is shown once
	maxReplayKey = 255
)

// replays keeps answers in memory. A restart forgets them: whoever asks again then
// does again what he asks.
type replays struct {
	now func() time.Time

	mu     sync.Mutex
	byKey  map[string]*list.Element
	oldest *list.List // of *replay, the last one in front
}

// A replay is an answer that was given, or, without a status, is being made.
type replay struct {
	key    string
	asked  [sha256.Size]byte
	at     time.Time
	status int
	media  string
	body   []byte
}

func newReplays(now func() time.Time) *replays {
	return &replays{now: now, byKey: map[string]*list.Element{}, oldest: list.New()}
}

// once lets handle answer a request that has no Idempotency-Key, or one that is new.
func (s *Server) once(handle func(*call) error) func(*call) error {
	return func(c *call) error {
		name := c.Header.Get("Idempotency-Key")
		if name == "" {
			return handle(c)
		}
		if len(name) > maxReplayKey {
			return problemf(api.CodeField, "Idempotency-Key: at most %d characters", maxReplayKey)
		}
		// Whose it is, and where: a key means nothing elsewhere.
		key := c.who.Name() + "\x00" + c.URL.Path + "\x00" + name
		have, fresh := s.replays.begin(key, sha256.Sum256(c.body))
		if !fresh {
			return c.again(have)
		}
		w := c.w
		copied := &copier{ResponseWriter: w}
		c.w = copied
		err := handle(c)
		c.w = w
		if err != nil {
			s.replays.forget(key) // nothing was done
			return err
		}
		s.replays.end(key, copied)
		return nil
	}
}

// again gives an answer that was given before.
func (c *call) again(have replay) error {
	asked := sha256.Sum256(c.body)
	switch {
	case subtle.ConstantTimeCompare(have.asked[:], asked[:]) != 1:
		return problemf(api.CodeIdempotency, "")
	case have.status == 0:
		return &problem{code: api.CodeBusy, detail: "the first request with this Idempotency-Key is under way", retry: busy}
	}
	return c.answer(have.status, have.media, have.body)
}

// begin returns what is known of a key, or notes that its answer is being made.
func (r *replays) begin(key string, asked [sha256.Size]byte) (have replay, fresh bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	now := r.now()
	for e := r.oldest.Back(); e != nil && (r.oldest.Len() >= maxReplays || now.Sub(e.Value.(*replay).at) > replayFor); e = r.oldest.Back() {
		r.drop(e)
	}
	if e := r.byKey[key]; e != nil {
		return *e.Value.(*replay), false
	}
	r.byKey[key] = r.oldest.PushFront(&replay{key: key, asked: asked, at: now})
	return replay{}, true
}

func (r *replays) end(key string, c *copier) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if e := r.byKey[key]; e != nil {
		x := e.Value.(*replay)
		x.status, x.media, x.body = c.status, c.Header().Get("Content-Type"), bytes.Clone(c.body.Bytes())
	}
}

func (r *replays) forget(key string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if e := r.byKey[key]; e != nil {
		r.drop(e)
	}
}

func (r *replays) drop(e *list.Element) {
	x := e.Value.(*replay)
	clear(x.body)
	delete(r.byKey, x.key)
	r.oldest.Remove(e)
}

// A copier keeps a copy of an answer.
type copier struct {
	http.ResponseWriter
	status int
	body   bytes.Buffer
}

// WriteHeader implements [http.ResponseWriter].
func (c *copier) WriteHeader(status int) {
	c.status = status
	c.ResponseWriter.WriteHeader(status)
}

// Write implements [http.ResponseWriter].
func (c *copier) Write(b []byte) (int, error) {
	c.body.Write(b)
	return c.ResponseWriter.Write(b)
}
