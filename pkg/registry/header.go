package registry

import (
	"slices"
	"strings"
)

// maxChallenges bounds what a hostile header can make us keep.
const maxChallenges = 16

// A challenge is one way to authenticate that a server offers (RFC 9110,
// section 11.6.1).
type challenge struct {
	scheme string // lower case
	params map[string]string
}

// parseChallenges reads WWW-Authenticate headers. One header may hold several
// challenges, and commas separate challenges as well as parameters.
func parseChallenges(headers []string) (list []challenge) {
	for _, s := range headers {
		p := lexer(s)
		for len(list) < maxChallenges {
			p.skip(" \t,")
			word := p.token()
			if word == "" {
				break
			}
			// A word is a parameter's name if "=" follows, else a scheme.
			save := p
			p.skip(" \t")
			if len(list) > 0 && p.accept('=') {
				if cur := list[len(list)-1]; len(cur.params) < maxChallenges {
					p.skip(" \t")
					cur.params[strings.ToLower(word)] = p.value()
					continue
				}
				break
			}
			p = save
			list = append(list, challenge{strings.ToLower(word), make(map[string]string)})
		}
	}
	return list
}

// parseNext finds the target of the link whose relation is "next" (RFC 8288,
// section 3). A header may hold several links.
func parseNext(headers []string) (target string, found bool) {
	for _, s := range headers {
		p := lexer(s)
		for {
			p.skip(" \t,")
			if !p.accept('<') {
				break
			}
			end := strings.IndexByte(string(p), '>')
			if end < 0 {
				break
			}
			target, p = string(p[:end]), p[end+1:]
			for p.skip(" \t"); p.accept(';'); p.skip(" \t") {
				p.skip(" \t;")
				name := p.token()
				p.skip(" \t")
				if !p.accept('=') {
					continue
				}
				p.skip(" \t")
				if rel := p.value(); strings.EqualFold(name, "rel") && slices.Contains(strings.Fields(strings.ToLower(rel)), "next") {
					return target, true
				}
			}
		}
	}
	return "", false
}

// lexer is the rest of a header.
type lexer string

func (p *lexer) skip(chars string) { *p = lexer(strings.TrimLeft(string(*p), chars)) }

func (p *lexer) accept(c byte) bool {
	if len(*p) == 0 || (*p)[0] != c {
		return false
	}
	*p = (*p)[1:]
	return true
}

// token is a token (RFC 9110, section 5.6.2), or a token68 without its "=".
func (p *lexer) token() string {
	i := 0
	for i < len(*p) && isTokenChar((*p)[i]) {
		i++
	}
	t := string((*p)[:i])
	*p = (*p)[i:]
	return t
}

func isTokenChar(c byte) bool {
	return c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c >= '0' && c <= '9' || strings.IndexByte("!#$%&'*+-.^_`|~/", c) >= 0
}

// value is a token or a quoted string. A string that is not closed ends with
// the header.
func (p *lexer) value() string {
	if !p.accept('"') {
		return p.token()
	}
	var b strings.Builder
	for i := 0; i < len(*p); i++ {
		switch c := (*p)[i]; {
		case c == '"':
			*p = (*p)[i+1:]
			return b.String()
		case c == '\\' && i+1 < len(*p):
			i++
			b.WriteByte((*p)[i])
		default:
			b.WriteByte(c)
		}
	}
	*p = ""
	return b.String()
}
