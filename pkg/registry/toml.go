package registry

import (
	"errors"
	"io"
	"os"

	"github.com/BurntSushi/toml"

	"github.com/layerpipe/layerpipe/pkg/fault"
)

// Bounds on what a configuration may make us read.
const (
	maxConfFile = 1 << 20 // bytes
	// maxConfDepth bounds tables within tables and the parts of a key: what the
	// decoder does for each grows with the square of the depth. Ours are five
	// deep.
	maxConfDepth = 32
)

// readToml reads one file of a configuration.
func readToml(name string, v any) (toml.MetaData, error) {
	f, err := os.Open(name)
	if err != nil {
		return toml.MetaData{}, err
	}
	defer f.Close()
	b, err := io.ReadAll(io.LimitReader(f, maxConfFile+1))
	if err != nil {
		return toml.MetaData{}, err
	}
	return decodeToml(b, v, name)
}

// decodeToml decodes the file of that name. Its content may be credentials, for
// a header say: an error tells the place and nothing of the text.
func decodeToml(b []byte, v any, name string) (toml.MetaData, error) {
	if len(b) > maxConfFile {
		return toml.MetaData{}, fault.Usagef("%s: over %d bytes", name, maxConfFile)
	}
	if line, ok := deeperThan(b, maxConfDepth); ok {
		return toml.MetaData{}, fault.Usagef("%s: line %d: over %d levels deep", name, line, maxConfDepth)
	}
	md, err := toml.Decode(string(b), v)
	if err == nil {
		return md, nil
	}
	if pe, ok := errors.AsType[toml.ParseError](err); ok {
		at := ""
		if pe.LastKey != "" {
			at = ", after " + oneLine(pe.LastKey, 60)
		}
		return md, fault.Usagef("%s: line %d%s: not valid TOML", name, pe.Position.Line, at)
	}
	// The other errors are about a key of the wrong type, and show no value.
	return md, fault.Usagef("%s: %s", name, oneLine(err.Error(), 200))
}

// deeperThan looks for the first line where brackets are nested deeper than
// most, or where a key has more parts than that.
func deeperThan(b []byte, most int) (line int, found bool) {
	line = 1
	depth, dots := 0, 0
	for i := 0; i < len(b); i++ {
		switch b[i] {
		case '\n':
			line++
			dots = 0
		case '#':
			for i+1 < len(b) && b[i+1] != '\n' {
				i++
			}
		case '"', '\'':
			end := stringEnd(b, i)
			for _, c := range b[i:end] {
				if c == '\n' {
					line++
				}
			}
			i = end - 1
		case '[', '{':
			depth++
		case ']', '}':
			depth--
		case '.':
			dots++
		}
		if depth > most || dots > most {
			return line, true
		}
	}
	return 0, false
}

// stringEnd is where the TOML string that begins at start ends: behind its last
// quote; without one, at the end of the line, or of the file for a string of
// many lines.
func stringEnd(b []byte, start int) int {
	q, i := b[start], start+1
	long := i+1 < len(b) && b[i] == q && b[i+1] == q
	if long {
		i += 2
	}
	for ; i < len(b); i++ {
		switch {
		case b[i] == '\\' && q == '"':
			i++
		case b[i] == '\n' && !long:
			return i
		case b[i] != q:
		case !long:
			return i + 1
		case i+2 < len(b) && b[i+1] == q && b[i+2] == q:
			return i + 3
		}
	}
	return len(b)
}
