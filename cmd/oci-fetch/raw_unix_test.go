//go:build unix

package main

import (
	"bufio"
	"bytes"
	"fmt"
	"net"
	"net/http"
	"os/exec"
	"strings"
	"testing"
)

// TestRawServers: answers that no HTTP server would give, or none that knows
// registries. Each ends in one line that says what is wrong and drives no
// terminal.
func TestRawServers(t *testing.T) {
	bin := program(t)
	answer := func(status, header, body string) string {
		return fmt.Sprintf("HTTP/1.1 %s\r\nContent-Length: %d\r\n%s\r\n%s", status, len(body), header, body)
	}
	const jsonType = "Content-Type: application/json\r\n"
	for name, tt := range map[string]struct {
		answer string
		code   int
		say    string
	}{
		"nothing":            {"", 1, "the server closed the connection"},
		"garbage":            {"\x00\xff\x1b[31m\r\n\r\n", 1, "malformed HTTP response"},
		"no header":          {"<html>hello</html>", 1, "malformed HTTP response"},
		"length":             {"HTTP/1.1 200 OK\r\nContent-Length: -5\r\n\r\n{}", 1, "bad Content-Length"},
		"chunks":             {"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nZZ\r\n{}\r\n", 1, "invalid byte in chunk length"},
		"a long header":      {answer("200 OK", "X: "+strings.Repeat("a", 200_000)+"\r\n", "{}"), 1, "headers exceeded"},
		"no content":         {"HTTP/1.1 204 No Content\r\n\r\n", 1, "204 No Content"},
		"an unknown status":  {answer("999 \x1b[31m", "", ""), 1, "999"},
		"a redirect nowhere": {answer("307 Away", "", ""), 1, "redirected to a bad address"},
		"a portal's page":    {answer("200 OK", "Content-Type: text/html\r\n", "<html>log in</html>"), 1, `"text/html" instead of a manifest`},
		"JSON of no kind":    {answer("200 OK", jsonType, "null"), 1, "no config"},
		"JSON of another":    {answer("200 OK", jsonType, `{"config":[]}`), 1, "manifest has a JSON array where there should be none, at byte 11"},
		"deep JSON":          {answer("200 OK", jsonType, strings.Repeat("[", 400_000)), 1, "exceeded max depth"},
		"no challenge":       {answer("401 Unauthorized", "", ""), 3, "neither basic nor bearer"},
		"negotiate":          {answer("401 Unauthorized", "WWW-Authenticate: Negotiate\r\n", ""), 3, "neither basic nor bearer"},
		// net/http would print the second one.
		"an answer unasked": {answer("400 Bad Request", "", `{"errors":[{"message":"evil \u001b[31mred\u0007\nline"}]}`) + "more than was asked for", 1, "(evil  [31mred  line)"},
	} {
		t.Run(name, func(t *testing.T) {
			l, err := net.Listen("tcp", "127.0.0.1:0")
			if err != nil {
				t.Fatal(err)
			}
			defer l.Close()
			go func() {
				for {
					c, err := l.Accept()
					if err != nil {
						return
					}
					if _, err := http.ReadRequest(bufio.NewReader(c)); err == nil {
						c.Write([]byte(tt.answer))
					}
					c.Close()
				}
			}()
			cmd := exec.Command(bin, "--plain-http", "--retries", "1", "--digest", l.Addr().String()+"/team/app")
			var out bytes.Buffer
			cmd.Env, cmd.Stdout, cmd.Stderr = environment(t), &out, &out
			cmd.Run()
			if code := cmd.ProcessState.ExitCode(); code != tt.code || !strings.Contains(out.String(), tt.say) || strings.Count(out.String(), "\n") != 1 {
				t.Errorf("exit code %d, %q", code, out.String())
			}
			if strings.ContainsAny(out.String(), "\x1b\a\r") {
				t.Errorf("%q drives the terminal", out.String())
			}
		})
	}
}
