package cli

import (
	"encoding/json"
	"io"
)

// PrintJSON writes v for --json: indented by two spaces, and without the
// escapes that only HTML wants, since names should stay names.
func PrintJSON(w io.Writer, v any) error {
	e := json.NewEncoder(w)
	e.SetEscapeHTML(false)
	e.SetIndent("", "  ")
	return e.Encode(v)
}
