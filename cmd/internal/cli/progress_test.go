package cli

import (
	"bytes"
	"strings"
	"testing"
)

func TestProgress(t *testing.T) {
	var buf bytes.Buffer
	p := (&Env{Stderr: &buf}).NewProgress(false)
	p.Start("layer 0", 100)
	p.Set(50)
	p.End()
	if buf.Len() > 0 {
		t.Errorf("on no terminal: %q", buf.String())
	}
	p.Line("one\nline")
	if buf.String() != "one line\n" {
		t.Errorf("line: %q", buf.String())
	}
	buf.Reset()
	p.on = true
	p.Start("layer 0", 100)
	p.Set(100)
	p.Line("a retry")
	p.Start("layer 1", 0)
	p.Set(7)
	p.End()
	for _, want := range []string{"layer 0", "100%", "a retry\n", "layer 1"} {
		if !strings.Contains(buf.String(), want) {
			t.Errorf("no %q in %q", want, buf.String())
		}
	}
}
