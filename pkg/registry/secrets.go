package registry

import (
	"slices"
	"strconv"
	"strings"
	"sync"
)

// secrets are what must never be shown. A server may echo what it was sent.
type secrets struct {
	mu     sync.Mutex
	list   []string
	tokens []string // the newest ones
}

// maxSecretTokens bounds the tokens remembered: a server that is asked for days
// on end gives out many, and one that means harm as many as it likes.
const maxSecretTokens = 8

// add adds secrets, as they are and as %q shows them.
func (s *secrets) add(list ...string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, v := range list {
		quoted := strconv.Quote(v)
		for _, v := range []string{v, quoted[1 : len(quoted)-1]} {
			if v != "" && !slices.Contains(s.list, v) {
				s.list = append(s.list, v)
			}
		}
	}
}

func (s *secrets) addToken(token string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.tokens = append(s.tokens, token); len(s.tokens) > maxSecretTokens {
		s.tokens = slices.Delete(s.tokens, 0, 1)
	}
}

func (s *secrets) scrubText(text string) string {
	s.mu.Lock()
	list := slices.Concat(s.list, s.tokens)
	s.mu.Unlock()
	var b strings.Builder
	for i := 0; i < len(text); {
		// The longest one: a secret may be a part of another.
		n := 0
		for _, v := range list {
			n = max(n, secretAt(text[i:], v))
		}
		if n > 0 {
			b.WriteString("***")
		} else {
			b.WriteByte(text[i])
			n = 1
		}
		i += n
	}
	return b.String()
}

// secretAt is how many bytes of a secret a text begins with, if that is all of
// it, or as much as was left of it where a long text was cut and got dots. Media
// types are shown in lower case.
func secretAt(text, secret string) int {
	n := len(secret)
	if len(text) >= n && strings.EqualFold(text[:n], secret) {
		return n
	}
	if n := strings.Index(text, "..."); n > 2 && n < len(secret) && strings.EqualFold(text[:n], secret[:n]) {
		return n
	}
	return 0
}

// scrub is scrubText for an error; the kinds of error within it stay.
func (s *secrets) scrub(err error) error {
	text := err.Error()
	if clean := s.scrubText(text); clean != text {
		return scrubbed{clean, err}
	}
	return err
}

type scrubbed struct {
	text string
	err  error
}

func (e scrubbed) Error() string { return e.text }
func (e scrubbed) Unwrap() error { return e.err }
