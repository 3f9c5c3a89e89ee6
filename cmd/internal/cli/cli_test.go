package cli

import (
	"strings"
	"testing"
)

// TestErrorf: whatever is in a name, an error is one line that does nothing to a
// terminal.
func TestErrorf(t *testing.T) {
	for _, tt := range []struct{ name, want string }{
		{"plain and schön \U0001f427", "plain and schön \U0001f427"},
		{"two\nlines\tand\rmore", "two lines and?more"},
		{"\x1b[31mred\x07\x7f", "?[31mred??"},
		{"\u009b31mred", "?31mred"},
		{"\u202egnp.exe", "?gnp.exe"},
		{"\x9b no UTF-8", "\ufffd no UTF-8"},
	} {
		var b strings.Builder
		(&Env{Name: "tool", Stderr: &b}).Errorf("%s: why", tt.name)
		if want := "tool: " + tt.want + ": why\n"; b.String() != want {
			t.Errorf("%q: %q, want %q", tt.name, b.String(), want)
		}
	}
}
