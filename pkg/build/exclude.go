package build

import (
	"regexp"
	"strings"
	"unicode/utf8"

	"github.com/layerpipe/layerpipe/pkg/fault"
)

// compileGlob translates a pattern of Options.Exclude.
func compileGlob(glob string) (*regexp.Regexp, error) {
	bad := func(what string) error { return fault.Usagef("pattern %q: %s", glob, what) }
	whole := strings.Contains(glob, "/")
	rest := strings.TrimSuffix(strings.TrimPrefix(string(validText([]byte(glob))), "/"), "/")
	if rest == "" {
		return nil, bad("nothing in it")
	}
	var re strings.Builder
	re.WriteString(`(?s)^`)
	if !whole {
		re.WriteString(`(?:.*/)?`)
	}
	for rest != "" {
		switch c := rest[0]; {
		case strings.HasPrefix(rest, "**/"):
			re.WriteString(`(?:.*/)?`) // "a/**/b" is "a/b", too
			rest = rest[3:]
		case strings.HasPrefix(rest, "**"):
			re.WriteString(`.*`)
			rest = rest[2:]
		case c == '*':
			re.WriteString(`[^/]*`)
			rest = rest[1:]
		case c == '?':
			re.WriteString(`[^/]`)
			rest = rest[1:]
		case c == '[':
			class, n := globClass(rest)
			if n == 0 {
				return nil, bad("a class without its end")
			}
			re.WriteString(class)
			rest = rest[n:]
		case c == '\\' && len(rest) == 1:
			return nil, bad("it ends in a backslash")
		case c == '\\':
			re.WriteString(regexp.QuoteMeta(rest[1:2]))
			rest = rest[2:]
		default:
			re.WriteString(regexp.QuoteMeta(rest[:1]))
			rest = rest[1:]
		}
	}
	re.WriteString(`$`)
	compiled, err := regexp.Compile(re.String())
	if err != nil {
		return nil, bad("not understood") // a range that goes backwards, say
	}
	return compiled, nil
}

// globClass translates a class at the beginning of s, of n bytes; n is 0 where
// it has no end. As in the shell, a first "]" is one of its members.
func globClass(s string) (class string, n int) {
	body := s[1:]
	var re strings.Builder
	re.WriteByte('[')
	if body != "" && (body[0] == '!' || body[0] == '^') {
		re.WriteString(`^/`)
		body = body[1:]
	}
	for first := true; body != ""; first = false {
		c := body[0]
		body = body[1:]
		switch {
		case c == ']' && !first:
			re.WriteByte(']')
			return re.String(), len(s) - len(body)
		case c == '[' && strings.HasPrefix(body, ":") && strings.Contains(body, ":]"):
			n := strings.Index(body, ":]") + 2
			re.WriteString("[" + body[:n]) // which regexp knows, or refuses
			body = body[n:]
		case c == '-':
			re.WriteByte('-')
		default:
			if c != '\\' {
				body = s[len(s)-len(body)-1:] // c again
			}
			_, width := utf8.DecodeRuneInString(body)
			re.WriteString(regexp.QuoteMeta(body[:width]))
			body = body[width:]
		}
	}
	return "", 0
}

// validText makes UTF-8 of names that are none: it gives each byte that is no
// part of a character one of the last characters that Unicode has room for, and
// which are nobody's.
func validText(name []byte) []byte {
	if utf8.Valid(name) {
		return name
	}
	var text []byte
	for len(name) > 0 {
		r, n := utf8.DecodeRune(name)
		if r == utf8.RuneError && n == 1 {
			r = utf8.MaxRune - 0xff + rune(name[0])
		}
		text = utf8.AppendRune(text, r)
		name = name[n:]
	}
	return text
}

// excluded tells whether a path, without a leading slash, is to be left out.
func (b *builder) excluded(path []byte) bool {
	text := validText(path)
	for _, re := range b.exclude {
		if re.Match(text) {
			return true
		}
	}
	return false
}
